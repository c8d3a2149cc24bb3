"""Writes the tables of docs/configuration.md from the configuration's own schema: `python docs/render.py`."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from diffulex_core.config.convert import choices_of
from diffulex_core.config.schema import KeySpec, build_schema, core_sections

PAGE = Path(__file__).parent / "configuration.md"
BEGIN, END = "<!-- tables: begin, written by docs/render.py -->\n", "<!-- tables: end -->\n"


def render() -> str:
    """The page with its tables as the schema has them now."""
    page = PAGE.read_text()
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    return before + BEGIN + "\n".join(_tables()) + "\n" + END + after


def _tables() -> Iterator[str]:
    for section, specs in groupby(build_schema(core_sections()), key=lambda spec: spec.section):
        yield f"\n### {section.capitalize()}\n"
        yield "| Key | Default | Meaning |"
        yield "| --- | --- | --- |"
        for spec in specs:
            yield f"| `{spec.name}` | {_code(spec.default)} | {_meaning(spec)} |"


def _meaning(spec: KeySpec) -> str:
    info = spec.info
    choices = info.choices or choices_of(spec.kind)
    bounds = [
        f"at least {info.minimum}" if info.minimum is not None else "",
        f"above {info.above}" if info.above is not None else "",
        f"at most {info.maximum}" if info.maximum is not None else "",
    ]
    parts = [
        info.help,
        f"One of {', '.join(map(_code, choices))}." if choices else "",
        f"{', '.join(filter(None, bounds))}.".capitalize() if any(bounds) and not choices else "",
        f"Also called {', '.join(map(_code, spec.other_names))}." if spec.other_names else "",
        "" if info.built else _not_built(spec),
    ]
    return " ".join(filter(None, parts)).replace("|", "\\|")


def _not_built(spec: KeySpec) -> str:
    accepted = dict.fromkeys([spec.default, *spec.info.honoured])
    values = f"only {' and '.join(map(_code, accepted))} {'are' if len(accepted) > 1 else 'is'} accepted"
    idle = spec.info.honoured and spec.default not in spec.info.honoured
    return f"*Not built yet: {values}{f', and mean {_code(spec.info.honoured[0])}' if idle else ''}.*"


def _code(value: Any) -> str:
    match value:
        case None:
            return "`null`"
        case bool():
            return f"`{str(value).lower()}`"
        case "":
            return '`""`'
        case tuple():
            return f"`{list(value)}`"
        case _:
            return f"`{value}`"


if __name__ == "__main__":
    PAGE.write_text(render())
