"""Two servers beside each other in a real browser."""

from __future__ import annotations

import sys
from pathlib import Path
from urllib.parse import quote

from playwright.sync_api import BrowserContext, Locator, Page, expect

sys.path.insert(0, str(Path(__file__).parent))

from site_of_tests import KEY, Site
from stage import (
    START,
    Q,
    ask_for_long,
    ended,
    expect_done,
    generate,
    idle,
    lines,
    numbered,
    opened,
    part,
    unfold,
)

pytest_plugins = ["scene"]


def beside(page: Page, url: str) -> tuple[Locator, Locator]:
    """Both sides, after a second server was added."""
    unfold(page, "Second server")
    page.get_by_label("Address").fill(url)
    page.get_by_role("button", name="Compare").click()
    sides = page.locator(".side")
    expect(sides).to_have_count(2)
    return sides.nth(0), sides.nth(1)


def test_a_prompt_goes_to_both_and_both_are_seen(page: Page, sites: Site) -> None:
    page.get_by_label("Prompt", exact=True).fill("kept")
    first, second = beside(page, sites.other_url)
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("kept")
    expect(part(second, "host")).to_have_text(sites.other_url.removeprefix("http://"))
    expect(part(second, "model")).to_have_text("tiny/llada")
    for side in (first, second):
        expect(part(side, "status")).to_have_text("Ready.")
    generate(page)
    for side in (first, second):
        expect_done(side)
        assert part(side, "figure-tokens").inner_text() == "17"
        assert side.locator(".canvas .cell.final:not(.beyond)").count() == 17
    ask_for_long(page)
    for side in (first, second):
        expect(side.locator(".canvas .cell.final").nth(8)).to_be_attached()
    page.keyboard.press("Escape")
    for side in (first, second):
        expect(part(side, "status")).to_contain_text("Stopped: ")
    assert idle(sites)
    page.get_by_role("button", name="Only this server").click()
    expect(page.locator(".side")).to_have_count(1)
    assert "with" not in page.url


def test_a_second_server_has_a_key_of_its_own(page: Page, sites: Site) -> None:
    first, second = beside(page, sites.locked_url)
    expect(part(second, "status")).to_have_text("This server wants an API key.")
    asked = second.get_by_label("API key of")
    expect(asked).to_be_focused()
    asked.fill(KEY)
    sent = []
    page.on("request", lambda request: sent.append((request.url, request.headers.get("authorization"))))
    page.keyboard.press("Enter")
    expect(part(second, "status")).to_have_text("Ready.")
    generate(page)
    expect_done(first)
    expect_done(second)
    keys = {url.split("/")[2]: key for url, key in sent if url.endswith("/generate")}
    assert keys == {sites.url.split("/")[2]: None, sites.locked_url.split("/")[2]: f"Bearer {KEY}"}


def test_a_server_that_does_not_allow_the_page_says_what_it_needs(context: BrowserContext, sites: Site) -> None:
    page = opened(context, sites.other_url)
    first, second = beside(page, sites.url)
    expect(part(second, "error")).to_contain_text(f"--cors-origins {sites.other_url}")
    generate(page)
    expect_done(first)
    expect(page.get_by_role("button", name="Generate")).to_be_enabled()
    expect(part(second, "error")).to_be_visible()


def test_a_link_alone_sends_nothing_to_a_second_server(context: BrowserContext, sites: Site) -> None:
    sent = []
    context.on("request", lambda request: sent.append(request.url))
    page = opened(context, f"{sites.url}/?with={quote(sites.other_url)}")
    expect(page.get_by_role("alert")).to_contain_text("names a second server")
    generate(page, Q)
    expect_done(page)
    assert not any(url.startswith(sites.other_url) for url in sent)
    page.get_by_role("button", name="Compare").click()
    expect(page.locator(".side")).to_have_count(2)


def test_what_is_no_address_is_refused(page: Page) -> None:
    unfold(page, "Second server")
    for text in ("", "javascript:alert(1)", "http://", "http://user:secret@host"):
        page.get_by_label("Address").fill(text)
        page.get_by_role("button", name="Compare").click()
        expect(page.get_by_role("alert")).to_contain_text("no address of a server")


def test_two_files_are_seen_beside_each_other(page: Page, sites: Site) -> None:
    first, second = beside(page, sites.other_url)
    files = [
        {
            "name": f"{word}.jsonl",
            "mimeType": "application/jsonl",
            "buffer": lines(
                numbered(
                    START,
                    {"event": "block_commit", "start": 0, "token_ids": [1], "text": word, "complete": True},
                    {**ended([1], word), "nfe": 1},
                )
            ).encode(),
        }
        for word in ("one", "two")
    ]
    page.get_by_label("Events that were saved").set_input_files(files)  # type: ignore[arg-type]
    expect(part(first, "answer")).to_have_text("one")
    expect(part(second, "answer")).to_have_text("two")
