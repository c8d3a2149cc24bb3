"""The page's sections about single steps: where the time of one goes, and what it costs on the host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.bench.anatomy import NAMES, PRODUCTS
from benchmarks.bench.tables import spread_text, table
from benchmarks.bench.turns import Spread


def anatomy_section(anatomy: Mapping[str, Any]) -> str:
    """What `python -m benchmarks.bench anatomy` wrote."""
    rows, bounds = [], []
    for cell in anatomy["cells"]:
        for name, found in cell["contenders"].items():
            parts = (f"{found[part]['median']:.1f}" for part in NAMES)
            rate = f"{found['rate']['median'] / 1e9:.0f}"
            rows.append((cell["network"], name, spread_text(Spread(**found["whole"]), 1), *parts, rate))
        theirs, ours = cell["contenders"].values()
        bound = theirs["whole"]["median"] / ours[PRODUCTS]["median"]
        bounds.append(f"{bound:.1f} times on the {cell['network']} network")
    busy = "" if all(cell["citable"] for cell in anatomy["cells"]) else " **Measured on a busy machine; not citable.**"
    return (
        "## Where the time of a step goes\n\nWhole canvases in bfloat16, prompt 64 + 256: milliseconds of a step "
        "(medians) that modules of each kind take themselves, in contenders that take turns in one process; "
        f"`python -m benchmarks.bench anatomy`, commit `{anatomy['commit']}`, {anatomy['began']}.{busy} *products* are "
        "those with weights, and the activation that our engine applies in them; *attention* rotates and stores, too; "
        "*between* are additions, embedding and angles; *outside* is what no module does, choosing tokens above all."
        "\n\n"
        f"{table(('Network', 'contender', 'whole', *NAMES, 'GFLOP/s of products'), rows)}\n\n"
        f"If all but our products took no time, a step would be {_listed(bounds)} as fast as the authors'."
    )


def host_section(host: Mapping[str, Any]) -> str:
    """What `benchmarks/host.py` wrote, in ms."""
    stages = ("critical", "schedule", "pack", "update", "leisure")
    rows = []
    for shape in host["shapes"]:
        clock = shape["this"]["wall"]
        spread = Spread(**{name: value / 1e3 for name, value in clock["critical"].items()})
        rows.append(
            (shape["label"], spread_text(spread, 2), *(f"{clock[each]['median'] / 1e3:.2f}" for each in stages[1:]))
        )
    rates = f"{host['requests']} running requests, medians of {host['rounds']} rounds of {host['steps']} steps"
    return (
        "## Host time of a step\n\n`python -m benchmarks.host --json benchmarks/results/host.json`, at commit "
        f"`{host['commit']}`, {host['began']}: {rates}, without "
        "network and sampler, in a single thread, milliseconds. *critical* is what a step waits for: planning "
        "(*schedule*), laying rows out (*pack*) and applying decisions (*update*), page work included, and what lies "
        f"between them. Records (*leisure*) are written while a device works on the next step.\n\n"
        f"{table(('running', *stages), rows)}"
    )


def _listed(texts: list[str]) -> str:
    *most, last = texts
    return f"{', '.join(most)} and {last}" if most else last
