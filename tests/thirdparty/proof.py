"""What a stranger meets, in an environment that holds core's wheel and nothing else of ours: `nox -s thirdparty`.

`python -m tests.thirdparty.proof BIN` takes the directory of that environment's programs. Every command is printed with
what it said; the first thing that is not as it should be ends the run with exit status 1.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import attrs

CHECKPOINT = Path(__file__).with_name("checkpoint.py")
PLUGINS = {"pilot": "family", "leftward": "strategy", "plainly": "backend"}
PROMPT = "What do strangers say?"
TAIL = 12
"""Lines of a long output that are shown."""


class Refuted(Exception):
    """Something is not as it should be."""


@attrs.frozen(kw_only=True)
class Said:
    """What a command said.

    Attributes:
        command: as one would type it.
        status: its exit status.
        answer: standard output.
        aside: standard error.
        seconds: wall time.
    """

    command: str
    status: int
    answer: str
    aside: str
    seconds: float

    @property
    def text(self) -> str:
        """All of it."""
        return self.answer + self.aside

    def show(self) -> None:
        """Print it, the middle of a long output left out."""
        print(f"  $ {self.command}   [{self.seconds:.1f} s]")
        lines = self.text.rstrip().splitlines()
        if len(lines) > TAIL:
            lines = [f"... {len(lines) - TAIL} lines ...", *lines[-TAIL:]]
        for line in lines:
            print(f"    {line}")


@attrs.frozen(kw_only=True)
class Stranger:
    """Somebody with an environment and a directory to work in.

    Attributes:
        binaries: the environment's programs.
        home: the directory; it holds none of our sources.
    """

    binaries: Path
    home: Path

    def ask(self, *words: str, at: str = ".", environ: Mapping[str, str] | None = None) -> Said:
        """Run a program of the environment."""
        inherited = {key: text for key, text in os.environ.items() if not key.startswith(("DIFFULEX_", "PYTHON"))}
        begin = time.perf_counter()
        done = subprocess.run(
            [str(self.binaries / words[0]), *words[1:]],
            cwd=self.home / at,
            env=inherited | {"COLUMNS": "100"} | dict(environ or {}),
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        shown = shlex.join([*(f"{key}={text}" for key, text in (environ or {}).items()), *words])
        return Said(
            command=shown if at == "." else f"cd {at} && {shown}",
            status=done.returncode,
            answer=done.stdout,
            aside=done.stderr,
            seconds=time.perf_counter() - begin,
        )

    def run(self, *words: str, at: str = ".", environ: Mapping[str, str] | None = None) -> str:
        """Run a program that must succeed, and print what it said."""
        said = self.ask(*words, at=at, environ=environ)
        said.show()
        expect(said.status == 0, f"exit status {said.status}")
        return said.text

    def refused(self, *words: str) -> str:
        """Run a program that must end with a message for the user, and print it."""
        said = self.ask(*words)
        said.show()
        expect(said.status == 2, f"exit status {said.status} where 2 and a message are due")
        expect("Traceback" not in said.text, "a traceback where a message is due")
        return said.text

    def pip(self, *words: str) -> None:
        """Run pip; nothing is shown unless it fails."""
        said = self.ask("python", "-m", "pip", *words, "--quiet")
        print(f"  $ {said.command}   [{said.seconds:.1f} s]")
        expect(said.status == 0, said.text)

    def plugins(self, environ: Mapping[str, str] | None = None) -> dict[str, dict[str, Any]]:
        """What `diffulex plugins list --json` tells of each plugin."""
        said = self.ask("diffulex", "plugins", "list", "--json", environ=environ)
        facts = {each["plugin"]: each for each in json.loads(said.answer)}
        print(f"  $ {said.command}")
        for name, each in facts.items():
            print(f"    {name:10} {each['dist']:20} {each['status']:12} {each['reason']}")
        return facts

    def answer(self, *settings: str) -> list[int]:
        """Tokens that the scaffolded family answers with random weights."""
        options = [word for each in ("load_format=dummy", "block_size=4", *settings) for word in ("--set", each)]
        said = self.ask(
            *("diffulex", "generate", "--model", "./checkpoint", *options),
            *("--temperature", "0", "--max-tokens", "12", "--ignore-eos", "--json", PROMPT),
        )
        expect(said.status == 0, said.text)
        (answer,) = json.loads(said.answer)["answers"]
        tokens = [int(token) for token in answer["token_ids"]]
        attrs.evolve(said, answer=f"{tokens} in {answer['nfe']} forwards\n").show()
        return tokens


def expect(holds: bool, otherwise: str) -> None:
    """Raise Refuted unless it holds."""
    if not holds:
        raise Refuted(otherwise)


def heading(text: str) -> None:
    print(f"\n== {text}", flush=True)


def change(path: Path, old: str, new: str) -> None:
    """Replace a text that stands in a file once."""
    text = path.read_text()
    expect(text.count(old) == 1, f"{path} holds {old!r} {text.count(old)} times")
    path.write_text(text.replace(old, new))


def prove(stranger: Stranger) -> None:
    """Everything, in order."""
    heading("Core alone, from its wheel")
    expect(list(stranger.plugins()) == ["core"], "something else is installed")
    where = stranger.run("python", "-c", "import diffulex_core; print(diffulex_core.__file__)")
    expect(str(stranger.binaries.parent) in where, "the core is not that of the environment")

    heading("A family, a strategy and a backend are written and installed")
    for name, kind in PLUGINS.items():
        stranger.run("diffulex", "plugins", "new", name, "--kind", kind)
    for name in PLUGINS:
        # One as its users install it, the others as its author does.
        editable = [] if name == "leftward" else ["-e"]
        stranger.pip("install", *editable, f"./diffulex-{name}[test]")
    found = stranger.plugins()
    expect(all(found[name]["status"] == "loaded" for name in PLUGINS), "a scaffolded plugin is not loaded")
    expect(not any(found[name]["imports_torch"] for name in PLUGINS), "a scaffolded plugin imports torch at discovery")
    taken = stranger.refused("diffulex", "plugins", "new", "pilot")
    expect("already" in taken, "a name that is taken is not refused for that")

    heading("Their own tests, and the conformance checks from the command line")
    conformance(stranger)

    heading("They answer together, with random weights")
    stranger.run("python", str(CHECKPOINT), "checkpoint", "diffulex_pilot.model")
    alone = stranger.answer("decoding_strategy=leftward")
    expect(len(alone) == 12, f"{len(alone)} tokens where 12 are due")
    expect(stranger.answer("decoding_strategy=leftward", "attn_impl=plainly") == alone, "the backend answers otherwise")

    heading("A broken package is quarantined and named, and the others go on")
    stranger.run("diffulex", "plugins", "new", "broken")
    plugin = stranger.home / "diffulex-broken/src/diffulex_broken/plugin.py"
    change(plugin, "from diffulex_core.plugin", "import broken_kernels\nfrom diffulex_core.plugin")
    stranger.pip("install", "--no-deps", "./diffulex-broken")
    found = stranger.plugins()
    expect(found["broken"]["status"] == "quarantined", "the broken plugin is not quarantined")
    expect(all(found[name]["status"] == "loaded" for name in PLUGINS), "a broken plugin took others with it")
    message = stranger.refused("diffulex", "plugins", "show", "brocken")
    named = ("'broken' (diffulex-broken 0.1.0)", "ModuleNotFoundError", "broken_kernels")
    expect(all(word in message for word in named), "the unknown-name error does not name the broken plugin and why")
    expect(stranger.answer("decoding_strategy=leftward") == alone, "a broken plugin changes answers")

    heading("Two packages claim one name, and nobody wins silently")
    stranger.run("diffulex", "plugins", "new", "rival")
    change(stranger.home / "diffulex-rival/src/diffulex_rival/plugin.py", 'name="rival"', 'name="pilot"')
    stranger.pip("install", "--no-deps", "./diffulex-rival")
    expect("'pilot'" in stranger.plugins()["rival"]["reason"], "the listing does not tell of the conflict")
    message = stranger.refused(
        *("diffulex", "generate", "--model", "./checkpoint", "--set", "load_format=dummy"),
        *("--set", "model_name=pilot", "--set", "decoding_strategy=leftward", PROMPT),
    )
    sides = ("'pilot' (diffulex-pilot 0.1.0)", "'rival' (diffulex-rival 0.1.0)", "DIFFULEX_DISABLE_PLUGINS=")
    expect(all(word in " ".join(message.split()) for word in sides), "the conflict does not name both and the way out")
    settled = stranger.plugins({"DIFFULEX_DISABLE_PLUGINS": "rival"})
    expect(settled["pilot"]["status"] == "loaded", "disabling one side does not settle the conflict")

    heading("What is uninstalled is gone")
    stranger.pip("uninstall", "--yes", *(f"diffulex-{name}" for name in (*PLUGINS, "broken", "rival")))
    expect(list(stranger.plugins()) == ["core"], "something is left")
    message = stranger.refused("diffulex", "plugins", "show", "pilot")
    expect("Not loaded" not in message, "what was uninstalled is still named")


def conformance(stranger: Stranger) -> None:
    """Two at a time, because the machine has at least two cores."""
    jobs: list[tuple[Sequence[str], str]] = []
    for name in PLUGINS:
        jobs.append((("python", "-m", "pytest", "-q", "-p", "no:cacheprovider"), f"diffulex-{name}"))
        jobs.append((("diffulex", "plugins", "check", name), "."))
    with ThreadPoolExecutor(2) as pool:
        for said in pool.map(lambda job: stranger.ask(*job[0], at=job[1]), jobs):
            said.show()
            expect(said.status == 0, f"exit status {said.status}")
            expect("passed" in said.text, "nothing was checked")


def main() -> int:
    """Run the proof; 1 when something is not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binaries", type=Path, help="directory of the environment's programs")
    binaries = parser.parse_args().binaries.resolve()
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as home:
        try:
            prove(Stranger(binaries=binaries, home=Path(home)))
        except Refuted as refuted:
            print(f"\nREFUTED: {refuted}")
            return 1
    print(f"\nAll of it holds. {time.perf_counter() - begin:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
