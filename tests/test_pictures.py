"""The pictures of the strategy pages are what the code draws, and show the masks that the strategies are known by."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from docs.pictures import gallery

from diffulex_core.host import Host
from diffulex_core.pattern import BlockCausal, Extent, IntArray

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docs/strategies/img"
SVG = "{http://www.w3.org/2000/svg}"
SIDE = 16

Sees = Callable[[int, int], bool]


@cache
def visibility() -> dict[str, str]:
    return gallery.visibility()


@cache
def progress() -> dict[str, str]:
    return gallery.progress()


def test_committed_pictures_are_those_that_the_code_draws() -> None:
    drawn = {**visibility(), **progress()}
    assert {path.name for path in FOLDER.iterdir()} == set(drawn), "run `python -m docs.pictures`"
    for name, picture in drawn.items():
        assert (FOLDER / name).read_text(encoding="utf-8") == picture, f"{name}: run `python -m docs.pictures`"


def test_every_strategy_of_this_repository_is_drawn() -> None:
    ours = {
        entry.descriptor.name
        for entry in Host.discover(environ={}).strategies.entries()
        if entry.provenance.dist.startswith("diffulex-")
    }
    assert ours <= {Path(name).stem for name in visibility()}


def test_another_visibility_is_another_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    def causal(self: BlockCausal, positions: IntArray, extent: Extent) -> IntArray:
        return positions + 1

    monkeypatch.setattr(BlockCausal, "key_end", causal)
    changed = {name for name, picture in gallery.visibility().items() if picture != visibility()[name]}
    assert changed == {"multi_bd.svg", "edit.svg", "dmax.svg", "fast_dllm_v2.svg"}


def block_causal(size: int) -> Sees:
    return lambda row, key: key // size <= row // size


def prompt_in_prefill(row: int, key: int) -> bool:
    return key < 6 if row < 6 else key // 4 <= row // 4


def encoded_until(canvas: int, window: int = 99) -> Sees:
    """Rows below `canvas` are causal, the others see the last encoded tokens and the whole canvas."""

    def sees(row: int, key: int) -> bool:
        if row < canvas:
            return row - window < key <= row
        return key > canvas - window

    return sees


def everything(row: int, key: int) -> bool:
    return True


# (picture, panel): keys, rows, who sees whom, rows that are asked, rows that are final.
PANELS: dict[tuple[str, int], tuple[str, str, Sees, set[int], set[int]]] = {
    ("multi_bd", 0): ("ppppppMMMMMM", "ppppppMMMMMM", block_causal(4), {*range(6, 12)}, {0, 1, 2, 3}),
    ("multi_bd", 1): ("ppppppabMdMM", "ppabMdMM", block_causal(4), {8, 10, 11}, {4, 5, 6, 7}),
    ("d2f", 0): ("ppppppMMMMMM", "ppppppMMMMMM", prompt_in_prefill, {*range(6, 12)}, {0, 1, 2, 3}),
    ("d2f", 1): ("ppppppabMdMM", "ppabMdMM", block_causal(4), {8, 10, 11}, {4, 5, 6, 7}),
    ("edit", 0): ("ppppppaxMdMM", "ppaxMdMM", block_causal(4), {*range(6, 12)}, set()),
    ("edit", 1): ("ppppppabcdeM", "ppabcdeM", block_causal(4), {*range(8, 12)}, {4, 5, 6, 7}),
    ("dmax", 0): ("ppppppaMcMMM", "ppaMcMMM", block_causal(4), {*range(6, 12)}, set()),
    ("dmax", 1): ("ppppppabcdMM", "ppabcdMM", block_causal(4), {*range(8, 12)}, {4, 5, 6, 7}),
    ("fast_dllm_v2", 0): ("ppppppppaMMMMMMM", "aMMMMMMM", block_causal(8), {8, 9, 10}, set()),
    ("fast_dllm_v2", 1): ("ppppppppabMMMMMM", "abMM", block_causal(8), {9, 10}, set()),
    ("fast_dllm_v2", 2): ("ppppppppabcdefgh", "abcdefgh", block_causal(8), {15}, {*range(8, 16)}),
    ("diffusion_gemma", 0): ("ppppp~~~~", "ppppp~~~~", encoded_until(5), {5, 6, 7, 8}, {0, 1, 2, 3, 4}),
    ("diffusion_gemma", 1): ("ppppp~~~~", "~~~~", encoded_until(5), {5, 6, 7, 8}, set()),
    ("diffusion_gemma", 2): ("pppppabcd~~~~", "abcd~~~~", encoded_until(9), {*range(9, 13)}, {5, 6, 7, 8}),
    ("diffusion_gemma", 3): ("pppppabcd~~~~", "abcd~~~~", encoded_until(9, 4), {*range(9, 13)}, {5, 6, 7, 8}),
    ("llada_canvas", 0): ("ppppppaMcMMMMM", "ppppppaMcMMMMM", everything, {7, 9}, set()),
    ("llada_canvas", 1): ("MMMMMMaMcMMMMM", "MMMMMMaMcMMMMM", everything, {7, 9}, set()),
    ("sparse_cache", 0): ("ppppppaMMMMMMM", "ppppppaMMMMMMM", everything, {7, 8, 9}, set()),
    ("sparse_cache", 1): ("kkkkkabMM", "abMM", everything, {7, 8}, set()),
    ("dream_canvas", 0): ("ppppppMMcMMMMM", "ppppppMMcMMMMM", everything, {5, 6, 8, 9, 10, 11, 12}, set()),
    ("dream_canvas", 1): ("ppppppaMcMMfgh", "ppppppaMcMMfgh", everything, {6, 8, 9}, set()),
}


def panel(picture: str, index: int) -> tuple[ET.Element, ET.Element]:
    """A panel and its field of cells."""
    [found] = ET.fromstring(visibility()[f"{picture}.svg"]).iterfind(f".//{SVG}g[@id='panel-{index}']")
    [cells] = found.iterfind(f"{SVG}g[@class='cells']")
    return found, cells


def boxes(cells: ET.Element, *kinds: str) -> list[tuple[str, float, float, float, float]]:
    """Class, x, y, width and height of the rectangles of some classes."""
    found = []
    for box in cells.iterfind(f"{SVG}rect"):
        if box.attrib["class"] in kinds:
            x, y, width, height = (float(box.attrib[name]) for name in ("x", "y", "width", "height"))
            found.append((box.attrib["class"], x, y, width, height))
    return found


def drawn_cells(cells: ET.Element) -> dict[tuple[int, int], str]:
    """(line, key) and class of the cells that are seen; none is drawn twice."""
    found: dict[tuple[int, int], str] = {}
    for kind, x, y, width, height in boxes(cells, "now", "cache", "stale"):
        if height == SIDE:
            line = y / SIDE
            for key in np.arange(x / SIDE, (x + width) / SIDE):
                assert (line, key) not in found
                found[int(line), int(key)] = kind
    return found


def axis(parent: ET.Element) -> str:
    return "".join(text.text or "" for text in parent.iterfind(f"{SVG}text") if text.text not in ("keys", "rows"))


@pytest.mark.parametrize(("picture", "index"), PANELS)
def test_a_drawn_cell_is_one_that_the_formula_of_the_mask_allows(picture: str, index: int) -> None:
    keys, rows, sees, _, _ = PANELS[picture, index]
    found, cells = panel(picture, index)
    assert (axis(found), axis(cells)) == (keys, rows)
    first = len(keys) - len(rows) if (picture, index) != ("fast_dllm_v2", 1) else 8
    assert set(drawn_cells(cells)) == {
        (line, key) for line in range(len(rows)) for key in range(len(keys)) if sees(first + line, key)
    }


@pytest.mark.parametrize(("picture", "index"), PANELS)
def test_the_marks_of_a_panel_tell_what_is_asked_and_what_is_final(picture: str, index: int) -> None:
    keys, rows, _, asked, final = PANELS[picture, index]
    _, cells = panel(picture, index)
    first = len(keys) - len(rows) if (picture, index) != ("fast_dllm_v2", 1) else 8
    marks = boxes(cells, "mark", "now")
    assert {first + int(y // SIDE) for kind, _, y, _, _ in marks if kind == "mark"} == asked
    assert {first + int(y // SIDE) for kind, _, y, _, height in marks if kind == "now" and height < SIDE} == final


@pytest.mark.parametrize(("picture", "index"), PANELS)
def test_keys_that_are_not_fed_are_final_but_for_stale_neighbours_and_kept_ones(picture: str, index: int) -> None:
    keys, rows, _, _, _ = PANELS[picture, index]
    _, cells = panel(picture, index)
    fed = {*range(8, 12)} if (picture, index) == ("fast_dllm_v2", 1) else {*range(len(keys) - len(rows), len(keys))}
    for (_, key), kind in drawn_cells(cells).items():
        settled = key < min(fed) and picture != "sparse_cache"
        assert kind == ("now" if key in fed else "cache" if settled else "stale")


@pytest.mark.parametrize("name", [path.name for path in sorted(FOLDER.iterdir())])
def test_a_picture_is_small_accessible_and_readable_on_light_and_dark_pages(name: str) -> None:
    text = (FOLDER / name).read_text(encoding="utf-8")
    assert len(text.encode()) < 20_000
    root = ET.fromstring(text)
    labels = root.attrib["aria-labelledby"].split()
    spoken: dict[str, Any] = {child.attrib["id"]: child.text for child in root if child.get("id") in labels}
    assert len(spoken) == 2
    assert all(len(words) > 10 for words in spoken.values())
    [style] = (child.text or "" for child in root if child.tag == f"{SVG}style")
    light, dark = style.split("@media(prefers-color-scheme:dark)")
    used = {name for element in root.iter() for name in element.get("class", "").split()} - {"cells", "head", "tok"}
    for part in (light, dark):
        assert used <= set(re.findall(r"\.(\w+)\{(?:fill|stroke):", part))
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")


def colours(part: str) -> dict[str, tuple[int, int, int]]:
    """Fill colour of each class."""
    found = re.findall(r"\.(\w+)\{fill:#([0-9a-f]+)", part)
    whole = {name: code if len(code) == 6 else "".join(2 * digit for digit in code) for name, code in found}
    return {name: (int(code[:2], 16), int(code[2:4], 16), int(code[4:], 16)) for name, code in whole.items()}


def contrast(one: tuple[int, int, int], other: tuple[int, int, int]) -> float:
    """Ratio of luminances as WCAG 2 defines it."""

    def luminance(colour: tuple[int, int, int]) -> float:
        linear = [c / 3294.6 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_words_stand_out_from_what_is_behind_them(scheme: int) -> None:
    names = ("edit.svg", "edit-steps.svg", "multi_bd-steps.svg")
    texts = [(FOLDER / name).read_text(encoding="utf-8").split("@media") for name in names]
    shades = {name: shade for parts in texts for name, shade in colours(parts[scheme]).items()}
    for words, behind in (
        ("ink", "page"), ("soft", "page"), ("ink", "prompt"), ("ink", "answer"), ("ink", "mask"), ("ink", "stored"),
        ("mark", "page"),
    ):  # fmt: skip
        assert contrast(shades[words], shades[behind]) > 4.5, (words, behind)
    for words, behind in (("onfresh", "fresh"), ("onfresh", "edited"), ("now", "cache"), ("now", "none")):
        assert contrast(shades[words], shades[behind]) > 2.5, (words, behind)


def test_refining_passes_feed_a_sub_block_and_all_others_the_block_or_the_prompt() -> None:
    root = ET.fromstring(progress()["fast_dllm_v2-steps.svg"])
    [film] = root.iterfind(f".//{SVG}g[@id='film-0']")
    rows = [text.text for text in film.iterfind(f"{SVG}text") if (text.text or "").isdigit()]
    assert rows == ["8", "8", "4", "4", "8", "4", "8", "8"]


def lines_of(picture: str, film: int) -> list[dict[int, str]]:
    """The words of each forward, by their place."""
    words: dict[int, dict[int, str]] = {}
    for text in ET.fromstring(picture).iterfind(
        f".//{SVG}g[@id='film-{film}']/{SVG}g[@class='cells']/{SVG}g/{SVG}text"
    ):
        words.setdefault(int(text.attrib["y"]), {})[int(text.attrib["x"])] = text.text or ""
    return [line for _, line in sorted(words.items())]


def told(line: dict[int, str]) -> str:
    return " ".join(word for _, word in sorted(line.items()))


def test_edits_and_dmax_correct_what_filling_leaves() -> None:
    right = "Eva loses 7 , 20 - 7 = 13 . Eva has 13 oranges now ."
    filled, edited = (lines_of(progress()["edit-steps.svg"], film) for film in (0, 1))
    merged = lines_of(progress()["dmax-steps.svg"], 0)
    assert [told(line) for line in filled] == ["Eva loses 7 , , - 7 = 13 . . has 13 oranges now ."]
    assert [told(line) for line in edited] == [told(filled[0]), right, right]
    assert [told(line) for line in merged] == [told(filled[0]), right]


def test_a_timeline_tells_the_answer_and_never_takes_a_token_back() -> None:
    for film, forwards in ((0, 7), (1, 5)):
        lines = lines_of(progress()["multi_bd-steps.svg"], film)
        assert len(lines) == forwards
        for before, after in pairwise(lines):
            assert before.items() <= after.items()
        answer = " ".join(word for _, word in sorted(lines[-1].items()) if word != "end")
        assert answer == "13 + 26 = 39 . 39 - 8 = 31 . The answer is 31 ."
