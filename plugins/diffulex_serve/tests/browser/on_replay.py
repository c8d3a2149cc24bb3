"""Answers that are looked at again in a real browser: forward by forward, from files, in other colours; and folds."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, expect

sys.path.insert(0, str(Path(__file__).parent))

from site_of_tests import Site
from stage import (
    ANSWER,
    START,
    Q,
    ended,
    expect_done,
    generate,
    lines,
    long_stream,
    numbered,
    part,
    unfold,
)

pytest_plugins = ["scene"]

HEATS = "[...document.querySelectorAll('.canvas .known')].map(cell => cell.style.getPropertyValue('--heat'))"
COLOURS = "[...document.querySelectorAll('.canvas .cell')].map(cell => getComputedStyle(cell).backgroundColor)"


def shown(page: Page, events: list[dict[str, Any]], name: str = "saved.jsonl") -> None:
    """Open a file of events and see its last forward."""
    file = {"name": name, "mimeType": "application/jsonl", "buffer": lines(events).encode()}
    page.get_by_label("Events that were saved").set_input_files(file)  # type: ignore[arg-type]
    expect(part(page, "status")).to_contain_text(f"{name}: ")
    page.keyboard.press("Escape")
    page.get_by_role("slider", name="Forward").focus()
    page.keyboard.press("End")


def heats(page: Page) -> list[float]:
    return [float(each.rstrip("%")) for each in page.evaluate(HEATS)]


def test_confidence_and_age_have_colours(page: Page) -> None:
    events = numbered(
        START,
        {"event": "block_open", "block": 0, "start": 0, "len": 3, "nfe": 1},
        {"event": "fill", "block": 0, "pos": [0], "token_ids": [1], "text": ["a"], "confidence": [0.25], "nfe": 1},
        {"event": "fill", "block": 0, "pos": [1], "token_ids": [2], "text": ["b"], "confidence": [0.75], "nfe": 4},
        {
            "event": "rewrite",
            "block": 0,
            "pos": [0],
            "old": [1],
            "new": [3],
            "text": ["c"],
            "confidence": [1],
            "nfe": 7,
        },
        {**ended([3, 2], "cb"), "nfe": 8},
    )
    shown(page, events)
    assert heats(page) == [100, 32]  # three quarters to the power of four
    page.get_by_label("Colour").select_option("age")
    assert heats(page) == [83, 67]  # one and four forwards ago, of steps that double
    page.keyboard.press("Tab")
    page.get_by_role("slider", name="Forward").focus()
    page.keyboard.press("ArrowLeft")
    assert heats(page) == [100, 67]
    page.keyboard.press("ArrowLeft")
    assert heats(page) == [67, 100]
    page.get_by_label("Colour").select_option("none")
    assert heats(page) == []
    legend = (
        "[...document.querySelectorAll('.of-confidence .known')].map(cell => getComputedStyle(cell).backgroundColor)"
    )
    page.get_by_label("Colour").select_option("confidence")
    assert len(set(page.evaluate(legend))) == 4


def test_an_age_is_drawn_anew_until_it_does_not_matter_any_more(page: Page) -> None:
    shown(page, long_stream(256, block=8, each=1))
    page.get_by_label("Colour").select_option("age")
    scrub = page.get_by_role("slider", name="Forward")
    scrub.focus()
    page.keyboard.press("Home")
    for _ in range(100):
        page.keyboard.press("ArrowRight")
    stepped = page.evaluate(HEATS)
    page.get_by_label("Colour").select_option("none")
    page.get_by_label("Colour").select_option("age")
    assert page.evaluate(HEATS) == stepped
    assert len(set(stepped)) == 7


def test_edits_and_states_of_blocks_are_marked(page: Page) -> None:
    fill = {"event": "fill", "block": 0, "confidence": [0.5]}
    events = numbered(
        START,
        *({"event": "block_open", "block": at, "start": at * 2, "len": 2, "nfe": 1} for at in range(4)),
        {**fill, "pos": [0, 1], "token_ids": [1, 2], "text": ["a", "b"], "confidence": [0.5, 0.5], "nfe": 1},
        {
            **fill,
            "block": 1,
            "pos": [2, 3],
            "token_ids": [1, 2],
            "text": ["a", "b"],
            "confidence": [0.5, 0.5],
            "nfe": 1,
        },
        {**fill, "block": 2, "pos": [4], "token_ids": [1], "text": ["a"], "nfe": 1},
        {
            "event": "rewrite",
            "block": 1,
            "pos": [2],
            "old": [1],
            "new": [3],
            "text": ["c"],
            "confidence": [1],
            "nfe": 2,
        },
        {
            "event": "block_commit",
            "block": 0,
            "start": 0,
            "token_ids": [1, 2],
            "text": "ab",
            "complete": True,
            "nfe": 2,
        },
    )
    shown(page, events)
    states = "[...document.querySelectorAll('.block')].map(block => block.dataset.state)"
    assert page.evaluate(states) == ["complete", "full", "filling", "waiting"]
    assert page.locator(".canvas .edited").all_text_contents() == ["c"]
    page.get_by_label("Shown as").select_option("text")
    assert page.evaluate("getComputedStyle(document.querySelector('.block')).display") == "inline"


WATCH = """() => {
  const shown = document.querySelector("[data-part=at]");
  window.watched = [];
  new MutationObserver(() => watched.push(shown.textContent)).observe(shown, { childList: true });
}"""


def test_an_answer_is_looked_at_again_forward_by_forward(page: Page) -> None:
    unfold(page, "Denoising")
    page.get_by_label("Accept above").fill("0.9999")
    generate(page)
    expect_done(page)
    finished = page.locator(".canvas").inner_html()
    scrub = page.get_by_role("slider", name="Forward")
    masks, tokens = [], []
    scrub.focus()
    page.keyboard.press("Home")
    while True:
        masks.append(page.locator(".canvas .cell.mask").count())
        tokens.append(int(part(page, "figure-tokens").inner_text()))
        if scrub.input_value() == scrub.get_attribute("max"):
            break
        page.keyboard.press("ArrowRight")
    assert masks[0] == 0  # nothing is open before the first forward
    assert max(masks) > 0
    assert tokens == sorted(tokens)
    assert (tokens[0], tokens[-1]) == (0, 17)
    assert page.locator(".canvas").inner_html() == finished
    page.evaluate(WATCH)
    page.get_by_role("button", name="Replay").click()
    expect(page.get_by_role("button", name="Replay")).to_be_visible()
    last = len(masks) - 1
    assert page.evaluate("watched") == [f"{at} of {last}" for at in range(len(masks))]
    assert page.locator(".canvas").inner_html() == finished


def test_saved_events_are_opened_again(page: Page, tmp_path: Path) -> None:
    generate(page)
    expect_done(page)
    finished = page.locator(".canvas").inner_html()
    figures = page.locator(".figures").inner_text()
    with page.expect_download() as saved:
        page.get_by_role("button", name="Save events").click()
    file = tmp_path / "answer.jsonl"
    saved.value.save_as(file)
    events = [json.loads(line) for line in file.read_text().splitlines()]
    assert (events[0]["event"], events[-1]["event"], events[-1]["text"]) == ("start", "end", ANSWER)
    page.reload()
    expect(part(page, "status")).to_have_text("Ready.")
    page.get_by_label("Events that were saved").set_input_files(file)
    expect(part(page, "status")).to_contain_text("answer.jsonl: Done: 17 tokens")
    scrub = page.get_by_role("slider", name="Forward")
    expect(scrub).to_have_js_property("value", scrub.get_attribute("max"))  # the replay came to its end
    expect(page.get_by_role("button", name="Replay")).to_be_visible()
    assert page.locator(".canvas").inner_html() == finished
    assert page.locator(".figures").inner_text() == figures
    assert part(page, "answer").inner_text() == ANSWER


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "no events of a stream"),
        ("hello", "Line 1"),
        ('{"event": "fill", "seq": 0, "nfe": 0, "pos": 3}', "Line 1"),
        (lines(numbered(START)) + '{"event": "fill", "seq": 5}\n', "Line 2"),
        (lines(numbered(START, {"event": "block_open", "start": 0, "len": 1e12})), "Line 2"),
        (lines(numbered(START, {"event": "snapshot", "start": -5, "token_ids": [1]})), "Line 2"),
        (lines(numbered(START, {"event": "end", "token_ids": [], "text": ""})), "cannot be shown"),
    ],
)
def test_a_file_that_holds_no_answer_is_refused(page: Page, content: str, said: str) -> None:
    file = {"name": "x.jsonl", "mimeType": "application/jsonl", "buffer": content.encode()}
    page.get_by_label("Events that were saved").set_input_files(file)  # type: ignore[arg-type]
    expect(page.get_by_role("alert")).to_contain_text("x.jsonl cannot be shown.")
    expect(page.get_by_role("alert")).to_contain_text(said)
    generate(page)
    expect_done(page)


FOLD = """async (events) => {
  const { NOTHING, fold } = await import("/page/fold.js");
  const freeze = (value) => {
    const open = value && typeof value === "object" && !Object.isFrozen(value);
    if (open) Object.values(Object.freeze(value)).forEach(freeze);
    return value;
  };
  const state = events.reduce((state, event) => freeze(fold(state, event)), NOTHING);
  return { text: state.text, cells: state.blocks.flatMap(({ cells }) => cells) };
}"""


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"thresholds": {"accept_threshold": 0.9999}},
        {"max_tokens": 7},
        {"stop": " The"},
        {"detail": "none"},
        {"detail": "blocks"},
        {"snapshot_every": 1},
    ],
)
def test_a_stream_folds_to_its_answer_and_changes_no_state(page: Page, sites: Site, body: dict[str, Any]) -> None:
    given = {"prompt": Q, "stream": True, "stream_mode": "events", **body}
    answered = httpx.post(f"{sites.url}/generate", json=given, timeout=60).text.split("\n\n")
    events = [json.loads(line.removeprefix("data: ")) for line in answered if line.startswith("data: {")]
    state, end = page.evaluate(FOLD, events), events[-1]
    final = [cell["token"] for cell in state["cells"] if not cell["beyond"]]
    assert final == end["token_ids"]
    assert all(cell["final"] for cell in state["cells"][: len(final)])
    assert state["text"] == end["text"]


def test_edits_remasks_and_snapshots_fold(page: Page) -> None:
    events = numbered(
        START,
        {"event": "block_open", "block": 0, "start": 0, "len": 3},
        {"event": "fill", "block": 0, "pos": [0, 2], "token_ids": [5, 6], "text": ["a", "b"], "confidence": [0.5, 0]},
        {"event": "rewrite", "block": 0, "pos": [0], "old": [5], "new": [7], "text": ["c"], "confidence": [0.9]},
        {"event": "remask", "block": 0, "pos": [2]},
        {"event": "snapshot", "start": 0, "len": 3, "token_ids": [7, 8, None]},
        {"event": "something_new", "block": 0},
        {"event": "constructor", "block": 0},
    )
    after = [page.evaluate(FOLD, events[: count + 1])["cells"] for count in range(len(events))]
    seen = [[(cell["token"], cell["text"], cell["confidence"], cell["edits"]) for cell in cells] for cells in after]
    none = (None, "", None, 0)
    assert seen[2] == [(5, "a", 0.5, 0), none, (6, "b", None, 0)]
    assert seen[3][0] == (7, "c", 0.9, 1)
    assert seen[4] == [(7, "c", 0.9, 1), none, (None, "", None, 1)]
    assert seen[5] == seen[6] == seen[7] == [(7, "c", 0.9, 1), (8, "", None, 0), (None, "", None, 1)]


WORK = """async (events) => {
  const { Canvas } = await import("/page/canvas.js");
  const { Recording } = await import("/page/film.js");
  const root = document.body.appendChild(document.createElement("div"));
  const canvas = new Canvas(root);
  const recording = new Recording();
  let touched = 0;
  let looked = 0;
  const watch = new MutationObserver((changes) => (touched += changes.length));
  watch.observe(root, { subtree: true, childList: true, attributes: true, characterData: true });
  const { forEach } = Array.prototype;
  Array.prototype.forEach = function (...given) {
    if (this[0]?.token !== undefined) looked += this.length;
    return forEach.apply(this, given);
  };
  for (const event of events) {
    const state = recording.add(event);
    if (event.event === "fill") canvas.draw(state, { colour: "confidence", symbol: "" });
  }
  Array.prototype.forEach = forEach;
  touched += watch.takeRecords().length;
  root.remove();
  return [touched, looked];
}"""


def test_work_grows_with_the_answer_and_not_with_its_square(page: Page) -> None:
    few, many = (page.evaluate(WORK, long_stream(tokens)) for tokens in (512, 2048))
    for less, more in zip(few, many, strict=True):
        assert less > 512
        assert 3.9 < more / less < 4.1


def test_an_answer_of_four_thousand_tokens_is_shown(page: Page) -> None:
    shown(page, long_stream(4096))
    assert page.locator(".canvas .cell.final").count() == 4096
    assert re.search(r"w4095$", part(page, "answer").inner_text())
    page.get_by_role("slider", name="Forward").focus()
    page.keyboard.press("Home")
    assert page.locator(".canvas .cell.mask").count() == 32  # of the block that is open before the first forward
    page.keyboard.press("End")
    assert page.locator(".canvas .cell.final").count() == 4096
