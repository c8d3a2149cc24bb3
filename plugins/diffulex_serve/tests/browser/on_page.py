"""The page in a real browser: it shows, stops, says what is wrong, and wants a key where the server does."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Route, expect

sys.path.insert(0, str(Path(__file__).parent))

from site_of_tests import KEY, Site, chromium, site

Q = "Q: Ann has 12 apples, buys 30 more and gives away 7. How many are left?"
ANSWER = "12 + 30 = 42. 42 - 7 = 35. The answer is 35."
OTHER = "Q: There are 20 oranges in a box. Leo puts in 16 and removes 1. How many are left?"
OTHER_ANSWER = "20 + 16 = 36. 36 - 1 = 35. The answer is 35."

expect.set_options(timeout=30_000)


@pytest.fixture(scope="session")
def served() -> Iterator[Site]:
    with site() as running:
        yield running


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    with browser.new_context() as fresh:
        yield fresh


@pytest.fixture
def page(context: BrowserContext, served: Site) -> Page:
    return opened(context, served.url)


def opened(context: BrowserContext, url: str) -> Page:
    """A tab with the page."""
    page = context.new_page()
    page.goto(url)
    expect(page.locator("#status")).not_to_have_text("Asking the server…")
    return page


def generate(page: Page, prompt: str = Q) -> None:
    page.get_by_label("Prompt", exact=True).fill(prompt)
    page.keyboard.press("Enter")


def ask_for_long(page: Page) -> None:
    """Begin an answer that takes a while."""
    page.get_by_text("Sampling", exact=True).click()
    page.get_by_label("Most tokens").fill("440")
    page.get_by_label("Go on past the end of text").check()
    generate(page)


def expect_done(page: Page, text: str = ANSWER) -> None:
    expect(page.locator("#status")).to_contain_text("Done: ")
    expect(page.locator("#answer")).to_have_text(text)


def idle(served: Site) -> bool:
    """Whether the engine has nothing to do and all of its pages, within some seconds."""
    for _ in range(200):
        state = httpx.get(f"{served.url}/ready").json()
        if state["requests"] == 0 and state["kv_pages"]["free"] == state["kv_pages"]["total"]:
            return True
        time.sleep(0.05)
    return False


def test_an_answer_is_seen_with_what_gave_it_and_how_fast(context: BrowserContext, served: Site) -> None:
    requests: list[str] = []
    problems: list[str] = []
    context.on("request", lambda request: requests.append(request.url))
    context.on("console", lambda message: problems.append(message.text))
    context.on("weberror", lambda error: problems.append(str(error.error)))
    page = opened(context, served.url)
    for part in ("tiny/llada", "d2f", "512 tokens"):
        expect(page.locator("#served")).to_contain_text(part)
    generate(page)
    expect_done(page)
    figures = {name: float(page.inner_text(f"#figure-{name}")) for name in ("tpf", "tps", "tokens", "nfe", "edits")}
    assert figures["tokens"] == 17
    assert figures["tpf"] == pytest.approx(17 / figures["nfe"], abs=0.01)
    assert figures["tps"] > 0
    assert page.locator("#canvas .cell.final:not(.beyond)").count() == 17
    assert page.locator("#canvas .cell.mask:not(.beyond)").count() == 0
    assert page.locator("#canvas .block.complete").count() == 4
    drawn = page.locator("#canvas .cell.final:not(.beyond)").all_text_contents()
    assert "".join(drawn).startswith(ANSWER)
    assert problems == []
    assert {url.split("/")[2] for url in requests} == {served.url.split("/")[2]}


def test_confidence_has_a_colour(page: Page) -> None:
    generate(page)
    expect_done(page)
    cells = page.locator("#canvas .cell.known")
    told = [
        float(re.search(r"confidence ([0-9.]+)", cells.nth(at).get_attribute("title") or "")[1]) for at in range(17)
    ]  # type: ignore[index]
    drawn = page.evaluate(
        "[...document.querySelectorAll('#canvas .cell.known')].map(cell => cell.style.getPropertyValue('--confidence'))"
    )
    assert [float(each.rstrip("%")) for each in drawn[:17]] == pytest.approx([value * 100 for value in told], abs=0.6)
    legend = (
        "[...document.querySelectorAll('.legend .provisional')].map(cell => getComputedStyle(cell).backgroundColor)"
    )
    assert len(set(page.evaluate(legend))) == 3


WATCH = """() => {
  const shown = document.getElementById("scrub-at");
  window.watched = [];
  new MutationObserver(() => watched.push(shown.textContent)).observe(shown, { childList: true });
}"""


def test_an_answer_is_looked_at_again_forward_by_forward(page: Page) -> None:
    page.get_by_text("Sampling", exact=True).click()
    page.get_by_label("Accept above").fill("0.9999")
    generate(page)
    expect_done(page)
    finished = page.locator("#canvas").inner_html()
    scrub = page.get_by_role("slider", name="Forward")
    masks = []
    scrub.focus()
    page.keyboard.press("Home")
    while True:
        masks.append(page.locator("#canvas .cell.mask").count())
        if scrub.input_value() == scrub.get_attribute("max"):
            break
        page.keyboard.press("ArrowRight")
    assert masks[0] == 0  # nothing is open before the first forward
    assert max(masks) > 0
    assert page.locator("#canvas").inner_html() == finished
    page.evaluate(WATCH)
    page.get_by_role("button", name="Replay").click()
    expect(page.get_by_role("button", name="Replay")).to_be_visible()
    last = len(masks) - 1
    assert page.evaluate("watched") == [f"{at} of {last}" for at in range(len(masks))]
    assert page.locator("#canvas").inner_html() == finished
    with page.expect_download() as saved:
        page.get_by_role("button", name="Save events").click()
    events = [json.loads(line) for line in Path(saved.value.path()).read_text().splitlines()]
    assert (events[0]["event"], events[-1]["event"], events[-1]["text"]) == ("start", "end", ANSWER)


@pytest.mark.parametrize("how", ["button", "escape"])
def test_a_stopped_answer_ends_at_once_and_what_is_final_stays(page: Page, served: Site, how: str) -> None:
    ask_for_long(page)
    expect(page.locator("#canvas .cell.final").nth(8)).to_be_attached()
    if how == "button":
        page.get_by_role("button", name="Stop").click()
    else:
        page.keyboard.press("Escape")
    expect(page.locator("#status")).to_contain_text("Stopped: ")
    expect(page.get_by_role("button", name="Stop")).to_be_disabled()
    expect(page.get_by_label("Prompt", exact=True)).to_be_focused()
    tokens = int(page.inner_text("#figure-tokens"))
    assert 0 < tokens < 440
    assert page.inner_text("#answer").startswith("12 + 30")
    assert idle(served)
    page.get_by_label("Go on past the end of text").uncheck()
    generate(page)
    expect_done(page)


def test_a_closed_tab_leaves_nothing_behind(context: BrowserContext, page: Page, served: Site) -> None:
    ask_for_long(page)
    expect(page.locator("#canvas .cell.final").nth(8)).to_be_attached()
    page.close()
    assert idle(served)


def test_two_tabs_answer_at_once_each_its_own(context: BrowserContext, served: Site) -> None:
    first, second = opened(context, served.url), opened(context, served.url)
    ask_for_long(first)
    expect(first.locator("#canvas .cell.final").first).to_be_attached()
    generate(second, OTHER)
    expect_done(second, OTHER_ANSWER)
    assert first.get_by_role("button", name="Stop").is_enabled()
    first.bring_to_front()
    first.keyboard.press("Escape")
    expect(first.locator("#status")).to_contain_text("Stopped: ")
    assert first.inner_text("#answer").startswith("12 + 30")
    assert second.inner_text("#answer") == OTHER_ANSWER


def test_an_error_is_said_and_the_next_answer_takes_it_away(page: Page) -> None:
    generate(page, "apples " * 600)
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("tokens")
    expect(page.locator("#status")).to_have_text("It failed.")
    generate(page)
    expect_done(page)
    expect(alert).to_be_hidden()


def frames(*events: dict[str, Any]) -> str:
    """The body of a stream."""
    numbered = [{"id": "x", "seq": seq, "step": 0, "nfe": 0, **event} for seq, event in enumerate(events)]
    return "".join(f"data: {json.dumps(event)}\n\n" for event in numbered)


START = {"event": "start", "prompt_tokens": 3, "model": "m", "strategy": "s", "block_size": 4, "mask_symbol": "?"}


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
    trap = "<img src=x onerror=alert(1)>"
    body = frames(
        START,
        {"event": "block_open", "block": 0, "start": 0, "len": 1},
        {"event": "fill", "block": 0, "pos": [0], "token_ids": [1], "text": [trap], "confidence": [0.5]},
        {"event": "block_commit", "block": 0, "start": 0, "token_ids": [1], "text": trap, "complete": True},
        {
            "event": "end",
            "finish_reason": "stop",
            "stop_detail": "stop_eos",
            "usage": {"completion_tokens": 1, "nfe": 1, "tpf": 1, "decode_time": 0.1},
            "text": trap,
            "token_ids": [1],
        },
    )
    page.route("**/generate", lambda route: route.fulfill(body=f"{body}data: [DONE]\n\n"))
    generate(page)
    expect_done(page, trap)
    assert page.locator("#canvas .cell").text_content() == trap
    assert page.locator("main img").count() == 0


def test_a_page_waits_for_an_engine_that_loads(context: BrowserContext, served: Site) -> None:
    page = context.new_page()
    loading = {"error": {"message": "The engine is loading.", "type": "service_unavailable"}}
    page.route("**/version", lambda route: route.fulfill(status=503, json=loading), times=1)
    page.goto(served.url)
    expect(page.locator("#status")).to_have_text("The engine is not ready yet…")
    expect(page.locator("#status")).to_have_text("Ready.")


def test_a_server_with_a_key_is_asked_with_it_and_the_tab_keeps_it(context: BrowserContext, served: Site) -> None:
    page = opened(context, served.locked_url)
    asked = page.get_by_label("API key of this server")
    expect(asked).to_be_focused()
    asked.fill("guessed")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_have_text("This key is wrong.")
    asked.fill(KEY)
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_have_text("Ready.")
    expect(asked).to_be_hidden()
    generate(page)
    expect_done(page)
    page.reload()
    expect(page.locator("#status")).to_have_text("Ready.")
    assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
    expect(opened(context, served.locked_url).get_by_label("API key of this server")).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_by_day_and_by_night(browser: Browser, served: Site, scheme: str) -> None:
    size = {"width": 360, "height": 740}
    with browser.new_context(color_scheme=scheme, viewport=size) as context:  # type: ignore[arg-type]
        page = opened(context, served.url)
        ask_for_long(page)
        expect(page.locator("#canvas .cell.final").nth(60)).to_be_attached()
        page.keyboard.press("Escape")
        expect(page.locator("#status")).to_contain_text("Stopped: ")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        red, *_ = map(int, re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor")))
        assert (red > 200) == (scheme == "light")


def test_everything_is_reached_by_keyboard_and_has_a_name(page: Page) -> None:
    expect(page.get_by_label("Prompt", exact=True)).to_be_focused()
    reached = []
    for _ in range(3):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.textContent.trim()"))
    assert reached[:2] == ["Generate", "Sampling"]  # Stop is disabled
    page.get_by_text("Sampling", exact=True).click()
    for control in page.locator("input:visible, textarea:visible").all():
        assert control.evaluate("control => control.labels.length") == 1


def test_sampling_controls_reach_the_engine(page: Page) -> None:
    page.get_by_text("Sampling", exact=True).click()
    for name, value in (
        ("Most tokens", "5"),
        ("Temperature", "0.5"),
        ("Top p", "0.9"),
        ("Top k", "7"),
        ("Min p", "0.01"),
        ("Seed", "3"),
        ("Accept above", "0.95"),
        ("Most forwards", "50"),
        ("Stop at", "z"),
    ):
        page.get_by_label(name).fill(value)
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
        "thresholds": {"accept_threshold": 0.95},
        "max_nfe": 50,
        "stop": "z",
    }
    expect(page.locator("#status")).to_contain_text("Done: 5 tokens")
    page.get_by_label("Most tokens").fill("0")
    generate(page)
    assert page.locator("#ask").evaluate("form => form.checkValidity()") is False


FOLD = """async (events) => {
  const { NOTHING, fold } = await import("/page/fold.js");
  const freeze = (value) => {
    const open = value && typeof value === "object" && !Object.isFrozen(value);
    if (open) Object.values(Object.freeze(value)).forEach(freeze);
    return value;
  };
  return events.reduce((state, event) => freeze(fold(state, event)), NOTHING);
}"""


@pytest.mark.parametrize(
    "body", [{}, {"thresholds": {"accept_threshold": 0.9999}}, {"max_tokens": 7}, {"stop": " The"}]
)
def test_a_stream_folds_to_its_answer_and_changes_no_state(page: Page, served: Site, body: dict[str, Any]) -> None:
    given = {"prompt": Q, "stream": True, "stream_mode": "events", **body}
    lines = httpx.post(f"{served.url}/generate", json=given, timeout=60).text.split("\n\n")
    events = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
    state, end = page.evaluate(FOLD, events), events[-1]
    final = [cell["token"] for cell in state["cells"] if not cell["beyond"]]
    assert final == end["token_ids"]
    assert all(cell["final"] for cell in state["cells"][: len(final)])
    assert state["text"] == end["text"]


def test_edits_remasks_and_snapshots_fold(page: Page) -> None:
    events = [
        START,
        {"event": "block_open", "block": 0, "start": 0, "len": 3},
        {"event": "fill", "block": 0, "pos": [0, 2], "token_ids": [5, 6], "text": ["a", "b"], "confidence": [0.5, 0]},
        {"event": "rewrite", "block": 0, "pos": [0], "old": [5], "new": [7], "text": ["c"], "confidence": [0.9]},
        {"event": "remask", "block": 0, "pos": [2]},
        {"event": "snapshot", "start": 0, "len": 3, "token_ids": [7, 8, None]},
        {"event": "something_new", "block": 0},
    ]
    numbered = [{"seq": seq, "nfe": 1, **event} for seq, event in enumerate(events)]
    after = [page.evaluate(FOLD, numbered[: count + 1])["cells"] for count in range(len(numbered))]
    shown = [[(cell["token"], cell["text"], cell["confidence"], cell["edits"]) for cell in cells] for cells in after]
    none = (None, "", None, 0)
    assert shown[2] == [(5, "a", 0.5, 0), none, (6, "b", None, 0)]
    assert shown[3][0] == (7, "c", 0.9, 1)
    assert shown[4] == [(7, "c", 0.9, 1), none, (None, "", None, 1)]
    assert shown[5] == shown[6] == [(7, "c", 0.9, 1), (8, "", None, 0), (None, "", None, 1)]
