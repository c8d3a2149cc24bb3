"""A small vocabulary of SVG for diagrams that are readable on light and on dark pages."""

from __future__ import annotations

import textwrap
from collections.abc import Container, Mapping
from types import MappingProxyType
from xml.etree import ElementTree as ET

Element = ET.Element

CELL = 16
"""Width and height of a token, in pixels."""
LETTER = 6.1
"""Mean width of a letter of the captions; generous, as readers bring their own font."""

LIGHT: Mapping[str, str] = MappingProxyType({
    "page": "fill:#fff;stroke:#d0d7de",
    "ink": "fill:#1f2328",
    "soft": "fill:#59636e",
    "line": "stroke:#fff",
    "edge": "stroke:#8c959f",
    "none": "fill:#eef1f4",
    "now": "fill:#2f6fde",
    "cache": "fill:#a9c7f5",
    "stale": "fill:#e58a00",
    "prompt": "fill:#d4dae1",
    "answer": "fill:#bfe3c6",
    "fresh": "fill:#3fa45b",
    "edited": "fill:#e0559b",
    "stored": "fill:#d4dae1",
    "mask": "fill:#fff;stroke:#8c959f",
    "noise": "fill:#f3d9a4",
    "kept": "fill:#f7c98a",
    "mark": "fill:#1f2328",
    "onfresh": "fill:#fff",
})  # fmt: skip
DARK: Mapping[str, str] = MappingProxyType({
    "page": "fill:#0d1117;stroke:#30363d",
    "ink": "fill:#e6edf3",
    "soft": "fill:#9aa4af",
    "line": "stroke:#0d1117",
    "edge": "stroke:#6e7681",
    "none": "fill:#1b2129",
    "now": "fill:#5b96ff",
    "cache": "fill:#25467f",
    "stale": "fill:#d27f00",
    "prompt": "fill:#3a424c",
    "answer": "fill:#1f5a30",
    "fresh": "fill:#3fb35f",
    "edited": "fill:#d14a8c",
    "stored": "fill:#3a424c",
    "mask": "fill:#0d1117;stroke:#6e7681",
    "noise": "fill:#6b4d12",
    "kept": "fill:#7a4a00",
    "mark": "fill:#e6edf3",
    "onfresh": "fill:#0d1117",
})  # fmt: skip
_FONT = "system-ui,-apple-system,'Segoe UI','DejaVu Sans',sans-serif"
_TYPE = f"text{{font:11px {_FONT}}}.head{{font-weight:600}}.tok,.tok text{{font-size:9px;text-anchor:middle}}"


def page(width: float, height: float, *, title: str, description: str) -> Element:
    """An empty drawing with its own background, so that no page's colour makes it unreadable."""
    root = ET.Element(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "viewBox": f"0 0 {number(width)} {number(height)}",
            "width": number(width),
            "height": number(height),
            "role": "img",
            "aria-labelledby": "title desc",
        },
    )
    ET.SubElement(root, "title", {"id": "title"}).text = title
    ET.SubElement(root, "desc", {"id": "desc"}).text = description
    ET.SubElement(root, "style")
    rect(root, 0.5, 0.5, width - 1, height - 1, "page", radius=6)
    return root


def group(parent: Element, x: float, y: float, name: str | None = None) -> Element:
    """A part of the drawing with an origin of its own."""
    named = {} if name is None else {"id": name}
    return ET.SubElement(parent, "g", {**named, "transform": f"translate({number(x)} {number(y)})"})


def rect(parent: Element, x: float, y: float, width: float, height: float, kind: str, *, radius: float = 0) -> None:
    """A rectangle; `kind` is a name of the palette."""
    place = {"x": x, "y": y, "width": width, "height": height}
    shape = {name: number(value) for name, value in place.items()}
    ET.SubElement(parent, "rect", {**shape, **({"rx": number(radius)} if radius else {}), "class": kind})


def path(parent: Element, steps: str, kind: str, *, line: bool = True) -> None:
    """A line along an SVG path, or the shapes that it encloses."""
    ET.SubElement(parent, "path", {"d": steps, "class": kind, **({"fill": "none"} if line else {})})


def text(parent: Element, x: float, y: float, words: str, kind: str | None = "ink") -> None:
    """One line of text whose baseline is at `y`; it begins at `x`, or has its middle there when `kind` holds "tok".

    Without a kind it is that of its group.
    """
    ET.SubElement(parent, "text", {"x": number(x), "y": number(y), **({"class": kind} if kind else {})}).text = words


def chip(parent: Element, x: float, y: float, kind: str, label: str = "", *, width: float = CELL) -> None:
    """A token of an axis: a box with a letter or a short word in it."""
    rect(parent, x + 1, y + 1, width - 2, CELL - 2, kind, radius=2)
    if label:
        ink = "tok onfresh" if kind in ("fresh", "edited") else "tok ink"
        text(parent, x + width / 2, y + CELL / 2 + 3.2, label, ink)


def paragraph(parent: Element, x: float, y: float, words: str, width: float, kind: str = "soft") -> None:
    """Text in lines of at most `width` pixels, the first with its baseline at `y`."""
    for index, line in enumerate(lines(words, width)):
        text(parent, x, y + 14 * index, line, kind)


def lines(words: str, width: float) -> list[str]:
    """The lines that `paragraph` makes."""
    return textwrap.wrap(words, max(8, int(width / LETTER)))


def number(value: float) -> str:
    """A coordinate without needless digits."""
    return f"{value:.1f}".removesuffix(".0")


def document(root: Element) -> str:
    """The drawing as the text of a file, with the colours that it uses."""
    used = {name for element in root.iter() for name in element.get("class", "").split()}
    [style] = root.iter("style")
    style.text = f"{_TYPE}{_rules(LIGHT, used)}@media(prefers-color-scheme:dark){{{_rules(DARK, used)}}}"
    ET.indent(root, "")
    return ET.tostring(root, encoding="unicode") + "\n"


def _rules(palette: Mapping[str, str], used: Container[str]) -> str:
    return "".join(f".{name}{{{value}}}" for name, value in palette.items() if name in used)
