"""Every picture by the name of its file."""

from __future__ import annotations

from pathlib import Path

from diffulex_core.host import Host
from docs.pictures import masks, timelines
from docs.pictures.runs import films
from docs.pictures.scenes import SCENES
from docs.pictures.scripted import forwards

FOLDER = Path(__file__).parent.parent / "strategies" / "img"


def visibility() -> dict[str, str]:
    """The pictures of visibility, as the code has it now."""
    host = Host.discover(environ={})
    drawn = {}
    for scene in SCENES:
        steps = list(forwards(scene.example, host))
        fed = [steps[panel.forward].sequences[panel.sequence] for panel in scene.panels]
        drawn[f"{scene.name}.svg"] = masks.draw(scene, fed)
    return drawn


def progress() -> dict[str, str]:
    """The pictures of answers that fill up, as tiny/llada and the scripts have them now."""
    return {f"{timeline.name}.svg": timelines.draw(timeline) for timeline in films(Host.discover(environ={}))}
