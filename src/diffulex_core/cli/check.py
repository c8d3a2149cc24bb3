"""`diffulex plugins check`: run the conformance checks of a plugin and tell what came out."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from importlib.util import find_spec

import attrs
import click

from diffulex_core.errors import PluginError

_COLOURS = {
    "passed": "green",
    "failed": "red",
    "unexpected": "red",
    "warned": "yellow",
    "expected": "yellow",
    "not applicable": "dim",
}


@click.command("check")
@click.argument("name")
@click.option(
    "--tier",
    type=click.Choice(["fast", "full", "nightly", "gpu"]),
    default="fast",
    show_default=True,
    help="How hard to try: fast takes a minute for a plugin, full ten times as many examples.",
)
@click.option("--json", "machine", is_flag=True, help="Print JSON for machines.")
@click.option("--all", "everything", is_flag=True, help="Also list the checks that do not apply.")
@click.option("--verbose", is_flag=True, help="Show the traceback of each failure.")
@click.pass_context
def check(context: click.Context, name: str, tier: str, *, machine: bool, everything: bool, verbose: bool) -> None:
    """Run the conformance checks of everything called NAME: a plugin, a distribution, a family, a strategy ...

    What several checks say in the same words is told once.

    Exit status: 0 when every required check passed, 1 when one did not, 2 when nothing is called NAME.
    """
    missing = [package for package in ("hypothesis", "pytest") if find_spec(package) is None]
    if missing:
        raise PluginError(f"the conformance kit needs {' and '.join(missing)}; pip install 'diffulex-core[testing]'.")
    from rich.console import Console
    from rich.markup import escape

    from diffulex_core.testing import Outcome, checks_for, run_checks

    console = Console(highlight=False, soft_wrap=True)
    begin = time.perf_counter()
    outcomes, told = list[Outcome](), dict[str, str]()
    bound = checks_for(name, tier=tier)  # type: ignore[arg-type]  # click has checked the tier
    if machine:
        # What code under test prints must not stand between the braces.
        with contextlib.redirect_stdout(sys.stderr):
            outcomes += run_checks(bound)
    for outcome in () if machine else run_checks(bound):
        outcomes.append(outcome)
        if outcome.status == "not applicable" and not everything:
            continue
        mark = f"[{_COLOURS[outcome.status]}]{outcome.status:>14}[/]"
        where = escape(f"{outcome.check}[{outcome.subject}]")
        console.print(f"{mark}  {where}  [dim]{outcome.seconds:.2f} s[/]")
        if outcome.message and outcome.status != "passed":
            first = told.setdefault(outcome.message, outcome.check)
            again = first != outcome.check and outcome.status != "not applicable"
            console.print(f"{'':16}{escape(f'the same as {first}' if again else outcome.message)}")
        if verbose and outcome.details:
            console.print(escape(outcome.details))
    seconds = time.perf_counter() - begin
    counts = {status: sum(each.status == status for each in outcomes) for status in _COLOURS}
    if machine:
        record = {
            "name": name,
            "tier": tier,
            "seconds": round(seconds, 3),
            "counts": counts,
            "checks": [attrs.asdict(each) for each in outcomes],
        }
        click.echo(json.dumps(record, indent=2))
    else:
        summary = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
        console.print(f"{escape(name)}: {summary or 'nothing to check'} in {seconds:.1f} s")
    if any(each.bad for each in outcomes):
        context.exit(1)
