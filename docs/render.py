"""Writes the tables of docs/configuration.md from the configuration's own schema: `python docs/render.py`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from diffulex_core.config.describe import allowed, not_built, type_name
from diffulex_core.config.schema import KeySpec, build_schema, core_sections

PAGE = Path(__file__).parent / "configuration.md"
BEGIN, END = "<!-- tables: begin, written by docs/render.py -->\n", "<!-- tables: end -->\n"


def render() -> str:
    """The page with its tables as the schema has them now."""
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    tables = "\n".join(_tables())
    return f"{before}{BEGIN}{tables}\n\n{END}{after}"


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
