"""Writes the tables of docs/configuration.md from the configuration's own schema: `python docs/render.py`."""

from __future__ import annotations

from pathlib import Path

from diffulex_core.config.describe import markdown_tables
from diffulex_core.config.schema import core_sections

PAGE = Path(__file__).parent / "configuration.md"
BEGIN, END = "<!-- tables: begin, written by docs/render.py -->\n", "<!-- tables: end -->\n"


def render() -> str:
    """The page with its tables as the schema has them now."""
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n{markdown_tables(core_sections())}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
