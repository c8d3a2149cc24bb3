"""The pages of the strategies: one structure, knobs that exist, and an index that says what fits."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import attrs
import pytest
from docs import render

from diffulex_core.config import resolve
from diffulex_core.config.schema import build_schema, core_sections
from diffulex_core.errors import IncompatibleError
from diffulex_core.host import Host
from diffulex_core.plugin import DecodingStrategy
from diffulex_core.refs import load_reference
from tests.test_docs import section

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docs/strategies"
INDEX = FOLDER / "index.md"

RECIPES = {
    "multi_bd": ("multi_bd", "naive"),
    "edit": ("multi_bd", "edit"),
    "d2f": ("d2f", "naive"),
    "dmax": ("dmax", "edit"),
    "fast_dllm_v2": ("fast_dllm_v2", "naive"),
    "diffusion_gemma": ("diffusion_gemma", "naive"),
    "llada_canvas": ("llada_canvas", "naive"),
    "dream_canvas": ("dream_canvas", "naive"),
}
"""Strategy and mode that each page is about."""
GEOMETRY = {"block_size", "buffer_size"}
"""Keys of the core that block strategies read."""
HEADINGS = ["Example", "Knobs", "When to use it", "Exactness", "Cost", "What to know"]

EACH = pytest.mark.parametrize("name", RECIPES)


@cache
def host() -> Host:
    return Host.discover(environ={})


def page(name: str) -> str:
    return (FOLDER / f"{name}.md").read_text(encoding="utf-8")


def ours() -> list[DecodingStrategy]:
    entries = host().strategies.entries()
    return [entry.descriptor for entry in entries if entry.provenance.dist.startswith("diffulex-")]


def options(strategy: DecodingStrategy) -> type | None:
    """The strategy's `config_cls`."""
    if strategy.config_cls is None:
        return None
    loaded: type = load_reference(strategy.config_cls, provenance=host().strategies.entry(strategy.name).provenance)
    return loaded


def own_keys(strategy: DecodingStrategy) -> dict[str, Any]:
    """Keys of the strategy's `config_cls` with their defaults."""
    cls = options(strategy)
    return {} if cls is None else {field.name: field.default for field in attrs.fields(cls)}


def knobs(name: str) -> dict[str, str]:
    """Key and default of each row of a page's first table of knobs."""
    table = section(page(name), "Knobs").partition("| --- |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| `(\w+)` \| `?([^|`]+)`? \| (?:\S.*) \|$", table, re.MULTILINE)
    assert len(rows) == table.count("\n| "), "a row that is not key, default and effect"
    assert len(dict(rows)) == len(rows)
    return dict(rows)


def told(default: object) -> str:
    """A default as the pages write it."""
    if default is None or isinstance(default, bool):
        return "null" if default is None else str(default).lower()
    return f"{default:g}" if isinstance(default, int | float) else str(default)


def test_every_strategy_in_every_mode_has_a_page() -> None:
    found = set[tuple[str, str]]()
    for strategy in ours():
        forced = strategy.forces.get("sampling_mode")
        modes = ["naive", *strategy.modes] if forced is None else [str(forced)]
        found.update((strategy.name, mode) for mode in modes)
    assert found == set(RECIPES.values())


@EACH
def test_the_pages_have_one_structure(name: str) -> None:
    text = page(name)
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert [heading for heading in headings if heading in HEADINGS] == [
        heading for heading in HEADINGS if heading in headings
    ]
    assert set(HEADINGS[:5]) <= set(headings)
    picture = re.search(rf"!\[[^\]]{{20,}}\]\(img/{name}\.svg\)", text)
    assert picture
    assert picture.start() < text.index("## Example")


@EACH
def test_every_knob_of_a_strategy_has_a_row_and_no_other_key_does(name: str) -> None:
    strategy, mode = RECIPES[name]
    recipe = host().strategies.get(strategy).in_mode(mode)
    own = own_keys(recipe).keys()
    documented = knobs(name).keys()
    assert recipe.thresholds <= documented
    assert documented <= own | recipe.thresholds | GEOMETRY
    pages = [other for other, (of, _) in RECIPES.items() if of == strategy]
    assert own <= set().union(*(knobs(other) for other in pages))


@EACH
def test_the_defaults_of_knobs_are_those_that_a_user_gets(name: str) -> None:
    strategy = host().strategies.get(RECIPES[name][0])
    core = {spec.name: spec.default for spec in build_schema(core_sections())}
    defaults = {**core, **own_keys(strategy), **strategy.defaults, **strategy.forces}
    for key, default in knobs(name).items():
        written = f"{float(default):g}" if re.fullmatch(r"[\d.]+", default) else default
        assert written == told(defaults[key]), key


@EACH
def test_what_a_page_calls_exact_are_tests_that_exist(name: str) -> None:
    named = re.findall(r"`([\w/]+\.py)`", section(page(name), "Exactness"))
    assert named
    assert [path for path in named if not (ROOT / path).is_file()] == []


def test_the_table_of_what_fits_is_what_the_plugins_register() -> None:
    assert INDEX.read_text(encoding="utf-8") == render.render_strategies(), "run `python docs/render.py`"


def test_what_the_table_says_fits_is_accepted_and_the_rest_is_refused() -> None:
    lines = [line for line in section(INDEX.read_text(), "What fits").splitlines() if line.startswith("| `")]
    recipes = [re.findall(r"`(\w+)`", cell) for cell in lines[0].strip("|").split("|")[1:]]
    seen = set()
    for line in lines[1:]:
        name, *cells = (cell.strip(" `") for cell in line.strip("|").split("|"))
        entry = host().models.entry(name)
        config = load_reference(str(entry.descriptor.tiny), provenance=entry.provenance)
        for (strategy, *modes), cell in zip(recipes, cells, strict=True):
            given = {"block_size": 8, "decoding_strategy": strategy, **({"sampling_mode": modes[0]} if modes else {})}
            try:
                resolve("somewhere", given, host=host(), checkpoint=config)
            except IncompatibleError:
                assert cell == "", (name, given)
            else:
                assert cell in ("yes", "default"), (name, given)
            if cell == "default":
                assert resolve("somewhere", {"block_size": 8}, host=host(), checkpoint=config).strategy.name == strategy
        seen.add(name)
    assert seen == {e.descriptor.name for e in host().models.entries() if e.provenance.dist.startswith("diffulex-")}


def test_the_index_leads_to_every_page_and_tells_who_shares_prompts() -> None:
    table = section(INDEX.read_text(), "Choosing a strategy").partition("If you are in doubt")[0]
    rows = {
        row[0]: row
        for row in re.findall(r"^\| \[[^\]]+\]\((\w+)\.md\) \|[^|]+\|[^|]+\| (yes|no)\b", table, re.MULTILINE)
    }
    assert set(rows) == set(RECIPES)
    for name, (_, shares) in rows.items():
        forced = host().strategies.get(RECIPES[name][0]).forces.get("enable_prefix_caching", True)
        assert (shares == "yes") == forced, name
