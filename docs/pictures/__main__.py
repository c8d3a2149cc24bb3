"""Writes the pictures of the strategy pages: `python -m docs.pictures`."""

from __future__ import annotations

from docs.pictures.gallery import FOLDER, progress, visibility

if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, drawing in {**visibility(), **progress()}.items():
        (FOLDER / name).write_text(drawing, encoding="utf-8")
