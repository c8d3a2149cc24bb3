"""The page by keyboard, by ear, on a phone, by day and by night, and without motion, in a real browser."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Route, expect

sys.path.insert(0, str(Path(__file__).parent))

from site_of_tests import Site
from stage import (
    ANSWER,
    START,
    ask_for_long,
    ended,
    expect_done,
    frames,
    generate,
    opened,
    part,
    unfold,
)

pytest_plugins = ["scene"]

NAMED = "control => control.labels.length > 0 || control.ariaLabel || control.textContent.trim() !== ''"
RING = "() => getComputedStyle(document.activeElement).outlineStyle"


@pytest.mark.parametrize("width", [360, 1440])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_a_desk_by_day_and_by_night(browser: Browser, sites: Site, scheme: Any, width: int) -> None:
    with browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 740}) as context:
        page = opened(context, sites.url)
        ask_for_long(page)
        expect(page.locator(".canvas .cell.final").nth(60)).to_be_attached()
        page.keyboard.press("Escape")
        expect(part(page, "status")).to_contain_text("Stopped: ")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        for group in page.locator("details").all():
            group.evaluate("group => { group.open = true; }")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        red, *_ = map(int, re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor")))
        assert (red > 200) == (scheme == "light")


def test_everything_is_reached_by_keyboard_and_has_a_name(page: Page) -> None:
    expect(page.get_by_label("Prompt", exact=True)).to_be_focused()
    generate(page)
    expect_done(page)
    for group in page.locator("details").all():
        group.evaluate("group => { group.open = true; }")
    controls = page.locator(":is(input, textarea, select, button, summary, [tabindex='0']):visible:enabled")
    wanted = controls.count()
    reached = set()
    for _ in range(wanted + 5):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement === document.body"):
            continue
        reached.add(page.evaluate("[...document.querySelectorAll('*')].indexOf(document.activeElement)"))
        assert page.evaluate(RING) != "none"
    assert len(reached) >= wanted
    for control in controls.all():
        assert control.evaluate(NAMED)


def test_an_answer_is_heard_in_pieces_and_once(page: Page) -> None:
    commits = [
        {"event": "block_commit", "start": at, "token_ids": [at], "text": f"w{at} ", "complete": True, "nfe": at}
        for at in range(300)
    ]
    text = "".join(commit["text"] for commit in commits)  # type: ignore[misc]
    body = frames(START, *commits, ended(range(300), text))
    page.route("**/generate", lambda route: route.fulfill(body=f"{body}data: [DONE]\n\n"))
    heard = part(page, "speech")
    assert heard.get_attribute("aria-live") == "polite"
    generate(page)
    expect(part(page, "status")).to_contain_text("Done: ")
    assert "".join(heard.locator("p").all_text_contents()) == text
    assert heard.locator("p").count() < 5
    assert page.locator("[aria-live], [role=status], [role=alert]").filter(has=page.locator(".cell")).count() == 0


HEARD = """async () => {
  const { Speech } = await import("/page/speech.js");
  const root = document.createElement("div");
  const speech = new Speech(root);
  speech.begin();
  for (let at = 1; at <= 40; at += 1) {
    speech.grow("word ".repeat(at));
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  speech.end();
  return [...root.children].map((piece) => piece.textContent);
}"""


def test_text_that_comes_quickly_is_heard_in_few_pieces(page: Page) -> None:
    pieces = page.evaluate(HEARD)
    assert "".join(pieces) == "word " * 40
    assert len(pieces) < 5


SHIFTS = """() => {
  window.shifts = [];
  new PerformanceObserver((list) => {
    for (const entry of list.getEntries()) {
      for (const { node } of entry.sources) shifts.push(node?.parentElement?.className ?? "");
    }
  }).observe({ type: "layout-shift", buffered: false });
}"""


def test_nothing_moves_while_a_canvas_fills(page: Page, sites: Site) -> None:
    """Blocks come one after the other, and each shows its tokens where its masks were."""
    unfold(page, "Denoising")
    page.get_by_label("Accept above").fill("0.9999")
    page.evaluate(SHIFTS)
    generate(page)
    expect_done(page)
    assert page.evaluate("shifts") == []


def test_the_canvas_follows_its_answer_unless_it_is_scrolled(page: Page) -> None:
    page.set_viewport_size({"width": 360, "height": 320})  # few blocks fill it, and most are still to come
    ask_for_long(page)
    scroller = part(page, "scroller")
    expect(scroller).not_to_have_js_property("scrollTop", 0)
    scroller.focus()
    page.keyboard.press("Home")
    expect(scroller).to_have_js_property("scrollTop", 0)
    blocks = page.locator(".canvas .block").count()
    expect(page.locator(".canvas .block").nth(blocks + 5)).to_be_attached()
    assert scroller.evaluate("node => node.scrollTop") == 0
    page.keyboard.press("Escape")
    expect(part(page, "status")).to_contain_text("Stopped: ")


def test_who_wants_no_motion_sees_none(browser: Browser, sites: Site) -> None:
    body = frames(
        START,
        {"event": "fill", "pos": [0], "token_ids": [1], "text": ["a"]},
        {"event": "rewrite", "pos": [0], "old": [1], "new": [2], "text": ["b"]},
        {"event": "block_commit", "start": 0, "token_ids": [2], "text": "b", "complete": True},
        ended([2], "b"),
    )

    def answer(route: Route) -> None:
        route.fulfill(body=f"{body}data: [DONE]\n\n")

    names = []
    for motion in ("reduce", "no-preference"):
        with browser.new_context(reduced_motion=motion) as context:  # type: ignore[arg-type]
            page = opened(context, sites.url)
            page.route("**/generate", answer)
            generate(page)
            expect_done(page, "b")
            edited = page.locator(".canvas .edited")
            names.append(edited.evaluate("cell => getComputedStyle(cell).animationName"))
    assert names == ["none", "edited-odd"]


def test_enter_generates_and_a_line_begins_with_shift(page: Page) -> None:
    prompt = page.get_by_label("Prompt", exact=True)
    prompt.fill("a")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("b")
    assert prompt.input_value() == "a\nb"
    unfold(page, "Sampling")
    page.get_by_label("Seed").fill("1")
    prompt.fill("Q: Ann has 12 apples, buys 30 more and gives away 7. How many are left?")
    page.get_by_label("Seed").focus()
    page.keyboard.press("Enter")
    expect_done(page, ANSWER)
