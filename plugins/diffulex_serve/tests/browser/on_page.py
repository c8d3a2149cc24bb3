"""The page in a real browser: it shows, stops, says what is wrong, and wants a key where the server does."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, Page, Route, expect

sys.path.insert(0, str(Path(__file__).parent))

from site_of_tests import KEY, Site
from stage import (
    ANSWER,
    OTHER,
    OTHER_ANSWER,
    START,
    Q,
    ask_for_long,
    ended,
    expect_done,
    frames,
    generate,
    idle,
    opened,
    part,
    unfold,
)

pytest_plugins = ["scene"]

TRAP = "<img src=x onerror=alert(1)>"


def test_an_answer_is_seen_with_what_gave_it_and_how_fast(context: BrowserContext, sites: Site) -> None:
    requests: list[str] = []
    problems: list[str] = []
    context.on("request", lambda request: requests.append(request.url))
    context.on("console", lambda message: problems.append(message.text))
    context.on("weberror", lambda error: problems.append(str(error.error)))
    page = opened(context, sites.url)
    for told in ("tiny/llada", "d2f", "512 tokens"):
        expect(page.locator(".served")).to_contain_text(told)
    generate(page)
    expect_done(page)
    shown = {
        name: part(page, f"figure-{name}").inner_text() for name in ("tpf", "tps", "ttft", "tokens", "nfe", "edits")
    }
    assert (shown["tokens"], shown["edits"]) == ("17", "0")
    assert float(shown["tpf"]) > 0
    assert float(shown["tps"]) > 0
    assert shown["ttft"].endswith("s")
    assert page.locator(".canvas .cell.final:not(.beyond)").count() == 17
    assert page.locator(".canvas .cell.mask:not(.beyond)").count() == 0
    assert page.locator(".canvas .block[data-state=complete]").count() == 2
    drawn = page.locator(".canvas .cell.final:not(.beyond)").all_text_contents()
    assert "".join(drawn).startswith(ANSWER)
    assert problems == []
    assert {url.split("/")[2] for url in requests} == {sites.url.split("/")[2]}


@pytest.mark.parametrize("how", ["button", "escape"])
def test_a_stopped_answer_ends_at_once_and_what_is_final_stays(page: Page, sites: Site, how: str) -> None:
    ask_for_long(page)
    expect(page.locator(".canvas .cell.final").nth(8)).to_be_attached()
    if how == "button":
        page.get_by_role("button", name="Stop").click()
    else:
        page.keyboard.press("Escape")
    expect(part(page, "status")).to_contain_text("Stopped: ")
    expect(page.get_by_role("button", name="Stop")).to_be_disabled()
    expect(page.get_by_label("Prompt", exact=True)).to_be_focused()
    tokens = int(part(page, "figure-tokens").inner_text())
    assert 0 < tokens < 440
    assert part(page, "answer").inner_text().startswith("12 + 30")
    assert idle(sites)
    page.get_by_label("Go on past the end of text").uncheck()
    generate(page)
    expect_done(page)


@pytest.mark.parametrize("how", ["closed", "loaded again"])
def test_a_tab_that_leaves_its_answer_leaves_nothing_behind(page: Page, sites: Site, how: str) -> None:
    ask_for_long(page)
    expect(page.locator(".canvas .cell.final").nth(8)).to_be_attached()
    if how == "closed":
        page.close()
    else:
        page.reload()
        expect(part(page, "status")).to_have_text("Ready.")
    assert idle(sites)


def test_two_tabs_answer_at_once_each_its_own(context: BrowserContext, sites: Site) -> None:
    first, second = opened(context, sites.url), opened(context, sites.url)
    ask_for_long(first)
    expect(first.locator(".canvas .cell.final").first).to_be_attached()
    generate(second, OTHER)
    expect_done(second, OTHER_ANSWER)
    assert first.get_by_role("button", name="Stop").is_enabled()
    first.bring_to_front()
    first.keyboard.press("Escape")
    expect(part(first, "status")).to_contain_text("Stopped: ")
    assert part(first, "answer").inner_text().startswith("12 + 30")
    assert part(second, "answer").inner_text() == OTHER_ANSWER


def test_an_error_is_said_and_the_next_answer_takes_it_away(page: Page) -> None:
    generate(page, "apples " * 600)
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("tokens")
    expect(part(page, "status")).to_have_text("It failed.")
    generate(page)
    expect_done(page)
    expect(alert).to_be_hidden()


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda route: route.abort(), "cannot be reached"),
        (lambda route: route.fulfill(status=502, body="<h1>bad gateway</h1>"), "status 502"),
        (lambda route: route.fulfill(body=frames(START)), "ended before the answer did"),
        (lambda route: route.fulfill(body=frames(START) + "data: [DONE]\n\n"), "ended before the answer did"),
        (
            lambda route: route.fulfill(
                body=frames(START, {"event": "error", "message": "the engine died", "type": "e"})
            ),
            "the engine died",
        ),
        (lambda route: route.fulfill(body='data: {"error": {"message": "all is lost"}}\n\n'), "all is lost"),
        (lambda route: route.fulfill(body=frames(START) + 'data: {"event": "fill", "seq": 7}\n\n'), "is missing"),
    ],
)
def test_what_goes_wrong_on_the_way_is_said(page: Page, answer: Callable[[Route], None], said: str) -> None:
    page.route("**/generate", answer)
    generate(page)
    expect(page.get_by_role("alert")).to_contain_text(said)
    expect(page.get_by_role("button", name="Generate")).to_be_enabled()
    page.unroute("**/generate")
    generate(page)
    expect_done(page)


def test_text_of_a_model_is_text(page: Page) -> None:
    body = frames(
        {**START, "model": TRAP, "mask_symbol": TRAP},
        {"event": "block_open", "block": 0, "start": 0, "len": 2},
        {"event": "fill", "block": 0, "pos": [0], "token_ids": [1], "text": [TRAP], "confidence": [0.5]},
        {"event": "block_commit", "block": 0, "start": 0, "token_ids": [1], "text": TRAP, "complete": True},
        ended([1], TRAP),
    )
    page.route("**/generate", lambda route: route.fulfill(body=f"{body}data: [DONE]\n\n"))
    unfold(page, "Conversation")
    page.get_by_label("Remember the conversation").check()
    for _ in range(2):
        generate(page, TRAP)
        expect_done(page, TRAP)
    assert page.locator(".canvas .cell").all_text_contents() == [TRAP, TRAP]
    assert part(page, "turns").locator("span").all_text_contents() == [TRAP, TRAP]
    assert page.locator("main img").count() == 0


def test_a_page_waits_for_an_engine_that_loads(context: BrowserContext, sites: Site) -> None:
    page = context.new_page()
    loading = {"error": {"message": "The engine is loading.", "type": "service_unavailable"}}
    page.route("**/version", lambda route: route.fulfill(status=503, json=loading), times=1)
    page.goto(sites.url)
    expect(part(page, "status")).to_have_text("The engine is not ready yet…")
    expect(part(page, "status")).to_have_text("Ready.")


def test_a_server_with_a_key_is_asked_with_it_and_the_tab_keeps_it(context: BrowserContext, sites: Site) -> None:
    page = opened(context, sites.locked_url)
    asked = page.get_by_label("API key of")
    expect(asked).to_be_focused()
    asked.fill("guessed")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_have_text("This key is wrong.")
    asked.fill(KEY)
    page.keyboard.press("Enter")
    expect(part(page, "status")).to_have_text("Ready.")
    expect(asked).to_be_hidden()
    expect(page.get_by_label("Prompt", exact=True)).to_be_focused()
    generate(page)
    expect_done(page)
    page.reload()
    expect(part(page, "status")).to_have_text("Ready.")
    assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
    expect(opened(context, sites.locked_url).get_by_label("API key of")).to_be_visible()


def test_settings_reach_the_engine(page: Page) -> None:
    for group in ("Sampling", "Denoising", "Conversation", "Display"):
        unfold(page, group)
    for name, value in (
        ("Most tokens", "5"),
        ("Temperature", "0.5"),
        ("Top p", "0.9"),
        ("Top k", "7"),
        ("Min p", "0.01"),
        ("Seed", "3"),
        ("Accept above", "0.95"),
        ("Most forwards", "50"),
        ("Most equal tokens", "40"),
        ("Stop at", "z\n\\nQ: "),
        ("Mask symbol", "_"),
        ("Milliseconds between looks", "20"),
    ):
        page.get_by_label(name).fill(value)
    page.get_by_label("Confidence is").select_option("margin")
    page.get_by_label("Show special tokens").check()
    page.get_by_label("Send as a chat message").uncheck()
    with page.expect_request("**/generate") as asked:
        generate(page)
    assert asked.value.post_data_json == {
        "stream": True,
        "stream_mode": "events",
        "detail": "tokens+confidence",
        "prompt": Q,
        "max_tokens": 5,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 7,
        "min_p": 0.01,
        "seed": 3,
        "confidence": "margin",
        "thresholds": {"accept_threshold": 0.95},
        "max_nfe": 50,
        "max_repetition_run": 40,
        "stop": ["z", "\nQ: "],
        "skip_special_tokens": False,
        "mask_symbol": "_",
        "min_interval_ms": 20,
    }
    expect(part(page, "status")).to_contain_text("Done: 5 tokens")
    page.get_by_label("Most tokens").fill("0")
    generate(page)
    expect(page.get_by_label("Most tokens")).to_be_focused()
    assert part(page, "status").inner_text().startswith("Done: 5 tokens")


def test_what_the_server_uses_stands_in_empty_fields(page: Page) -> None:
    expect(page.get_by_label("Most tokens")).to_have_attribute("placeholder", "64")  # the checkpoint recommends it
    expect(page.get_by_label("Top k")).to_have_attribute("placeholder", "none")
    expect(page.get_by_label("Seed")).to_have_attribute("placeholder", "random")
    expect(page.get_by_label("Accept above")).to_have_attribute("placeholder", "0.9")
    expect(page.get_by_label("Remask below")).to_be_hidden()  # d2f has no such threshold


def test_a_conversation_is_sent_again_and_forgotten_where_it_is_to_be(page: Page) -> None:
    unfold(page, "Conversation")
    expect(page.get_by_label("Remember the conversation")).not_to_be_checked()  # no chat template
    page.get_by_label("Remember the conversation").check()
    page.get_by_label("System prompt").fill("Sum.")
    told = [
        {"role": "system", "content": "Sum."},
        {"role": "user", "content": Q},
        {"role": "assistant", "content": ANSWER},
        {"role": "user", "content": OTHER},
    ]
    body = frames(
        START,
        {"event": "block_commit", "block": 0, "start": 0, "token_ids": [1], "text": ANSWER, "complete": True},
        ended([1], ANSWER),
    )
    page.route("**/generate", lambda route: route.fulfill(body=f"{body}data: [DONE]\n\n"))
    sent = []
    for prompt in (Q, OTHER):
        with page.expect_request("**/generate") as asked:
            generate(page, prompt)
        sent.append(asked.value.post_data_json["messages"])
        expect_done(page)
    assert sent == [told[:2], told]
    assert part(page, "turns").locator("span").all_text_contents() == [Q, ANSWER]
    page.get_by_role("button", name="Start afresh").click()
    expect(part(page, "turns")).to_be_hidden()
    expect(part(page, "answer")).to_be_empty()
    with page.expect_request("**/generate") as asked:
        generate(page, OTHER)
    assert asked.value.post_data_json["messages"] == [told[0], told[3]]


def test_the_prompt_is_shown_as_the_model_reads_it(page: Page) -> None:
    unfold(page, "Conversation")
    page.get_by_label("System prompt").fill("Sum.")
    page.get_by_label("Prompt", exact=True).fill("Q: 1")
    page.get_by_role("button", name="Show the prompt").click()
    expect(page.locator("#rendered-text")).to_contain_text("system: Sum.\nuser: Q: 1\nassistant:")
    expect(page.locator("#rendered-count")).to_contain_text("together may have 512")
