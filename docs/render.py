"""Writes the tables of keys from the schema, and those of models and strategies from the plugins.

`python docs/render.py` does it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from diffulex_core.compat import missing_capabilities
from diffulex_core.config.describe import allowed, not_built, type_name
from diffulex_core.config.schema import KeySpec, build_schema, core_sections
from diffulex_core.host import Host

PAGE = Path(__file__).parent / "configuration.md"
MODELS = Path(__file__).parent / "models.md"
STRATEGIES = Path(__file__).parent / "strategies" / "index.md"
FIRST_PARTY = "diffulex-"
BEGIN, END = "<!-- tables: begin, written by docs/render.py -->\n", "<!-- tables: end -->\n"


def render() -> str:
    """The page of keys with its tables as the schema has them now."""
    return _with_tables(PAGE, _tables())


def render_models() -> str:
    """The page of models with its table as this repository's plugins register them now."""
    return _with_tables(MODELS, _families())


def render_strategies() -> str:
    """The page of strategies with its table as this repository's plugins register them now."""
    return _with_tables(STRATEGIES, _fits())


def _with_tables(page: Path, tables: Iterator[str]) -> str:
    before, rest = page.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    text = "\n".join(tables)
    return f"{before}{BEGIN}{text}\n\n{END}{after}"


def _families() -> Iterator[str]:
    heads = (
        "`model_name`",
        "Plugin",
        "`architectures`",
        "`model_type`",
        "Also called",
        "Logits",
        "Default strategy",
        "Provides",
    )
    yield f"\n| {' | '.join(heads)} |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    for entry in Host.discover(environ={}).models.entries():
        family = entry.descriptor
        if entry.provenance.dist.startswith(FIRST_PARTY):
            cells = (
                _code(family.name),
                entry.provenance.dist,
                _code(*family.architectures),
                _code(*family.model_types),
                _code(*family.aliases),
                family.logits,
                _code(*filter(None, [family.default_strategy])),
                _code(*sorted(family.provides)),
            )
            yield f"| {' | '.join(cells)} |"


def _fits() -> Iterator[str]:
    """A row for each family, a column for each strategy in each mode."""
    host = Host.discover(environ={})
    recipes = [
        (
            entry.descriptor.name if mode is None else f"{entry.descriptor.name}, {mode}",
            entry.descriptor.in_mode(mode or ""),
        )
        for entry in sorted(host.strategies.entries(), key=lambda entry: entry.descriptor.name)
        if entry.provenance.dist.startswith(FIRST_PARTY)
        for mode in (None, *(mode for mode in entry.descriptor.modes if "sampling_mode" not in entry.descriptor.forces))
    ]
    yield f"\n| `model_name` | {' | '.join(_code(*name.split(', ')) for name, _ in recipes)} |"
    yield f"| --- |{' --- |' * len(recipes)}"
    for entry in host.models.entries():
        family = entry.descriptor
        if entry.provenance.dist.startswith(FIRST_PARTY):
            cells = (
                "default" if name == family.default_strategy else "" if missing_capabilities(family, recipe) else "yes"
                for name, recipe in recipes
            )
            yield f"| {_code(family.name)} | {' | '.join(cells)} |"


def _code(*names: str) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _tables() -> Iterator[str]:
    for section in core_sections():
        yield f"\n### `{section.name}`\n"
        yield f"{(section.cls.__doc__ or '').partition(chr(10))[0]}\n"
        yield "| Key | Type | Default | Allowed | Meaning |"
        yield "| --- | --- | --- | --- | --- |"
        for spec in build_schema([section]):
            cells = (f"`{spec.name}`", type_name(spec.kind), f"`{_plain(spec.default)}`", allowed(spec), _meaning(spec))
            yield f"| {' | '.join(cell.replace('|', ' or ') for cell in cells)} |"


def _meaning(spec: KeySpec) -> str:
    names = ", ".join(f"`{name}`" for name in spec.other_names)
    return " ".join(part for part in (spec.info.help, f"Also: {names}." if names else "", not_built(spec)) if part)


def _plain(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case tuple():
            return f"[{', '.join(map(_plain, value))}]"
        case _:
            return str(value) or '""'


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
    MODELS.write_text(render_models(), encoding="utf-8")
    STRATEGIES.write_text(render_strategies(), encoding="utf-8")
