"""llama.cpp's `llama-diffusion-cli` as a contender: a whole canvas in every step, on the same weights."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from benchmarks.bench.gguf_file import word, write_gguf
from benchmarks.bench.memory import peak_rss
from benchmarks.bench.work import Answer, Work

Part = Literal["forwards", "whole"]
"""What of a run counts: its forwards alone, or its own search through the logits as well."""

_TIMES = re.compile(r"total time: ([\d.]+)ms, time per step: ([\d.]+)ms, sampling time per step: ([\d.]+)ms")
_WORD = re.compile(r"<\|(\d+)\|>")
_SCHEDULE = "0.001"
"""The end of a schedule that runs every planned step over the whole canvas; a schedule by blocks runs more."""


_LOOK = 0.02
"""Seconds between two looks at the memory of the tool."""
_TRIES = 30
"""The tool may end before its log's own thread has written the last lines, as it does for networks that take
microseconds; such a run is made again."""


class LlamaCppFailed(RuntimeError):
    """The tool ended with an error, or said something that this program does not understand."""


class _Unfinished(LlamaCppFailed):
    """The last lines of the tool's log are missing."""


class LlamaCpp:
    """A contender: see `benchmarks.bench.child`. One process of the tool for each run; its own clock counts, without
    loading."""

    def __init__(self, *, folder: str, config: Mapping[str, Any], dtype: str, cli: str, part: Part = "whole") -> None:
        """
        Args:
            folder: the checkpoint; the GGUF file is written into it.
            config: its config.json.
            dtype: of the matrices.
            cli: path of `llama-diffusion-cli`.
            part: what counts.
        """
        kind = {"float32": "f32", "bfloat16": "bf16"}[dtype]
        self._file = write_gguf(Path(folder), config, dtype, Path(folder) / f"model-{kind}.gguf")
        self._cli, self._part, self._mask = cli, part, config["mask_token_id"]

    def prepare(self, work: Work, prompts: Sequence[Sequence[int]]) -> None:
        """Keep what `run` shall do.

        Raises:
            ValueError: it is nothing that the tool can do.
        """
        if work.batch != 1 or work.threshold is not None or work.sampled_steps is not None:
            raise ValueError("llama-diffusion-cli answers one prompt at a time, in a fixed number of steps")
        self._work, self._prompt = work, list(prompts[0])

    def command(self) -> list[str]:
        """The tool's arguments: the most probable token of each position, which is its quickest search."""
        work, rows = self._work, str(self._work.prompt + self._work.output)
        threads = os.environ["OMP_NUM_THREADS"]
        return [
            self._cli, "-m", str(self._file), "-p", "".join(map(word, self._prompt)),
            "-c", rows, "-b", rows, "-ub", rows, "-t", threads, "-tb", threads,
            "--diffusion-steps", str(work.steps), "--diffusion-eps", _SCHEDULE, "--diffusion-algorithm", "4",
            "--temp", "0", "--top-k", "1", "--top-p", "1.0", "--seed", "1",
        ]  # fmt: skip

    def run(self) -> Answer:
        """Denoise once.

        Raises:
            LlamaCppFailed: see there.
        """
        for _ in range(_TRIES - 1):
            try:
                return self._denoised()
            except _Unfinished:
                continue
        return self._denoised()

    def _denoised(self) -> Answer:
        code, printed, noted, peak = watch(self.command())
        said = f"{printed}\n{noted}"
        if code:
            raise LlamaCppFailed(f"{self._cli} ended with {code}: {said[-2000:]}")
        total, sampling = times(said)
        tokens = answer(printed, said, self._prompt, self._work.output)
        work = self._work
        rows = work.steps * (work.prompt + work.output)
        return Answer(
            tokens=[tokens],
            steps=work.steps,
            planned_steps=work.steps,
            rows=rows,
            head_rows=rows,
            seconds=(total - work.steps * sampling if self._part == "forwards" else total) / 1000,
            peak_rss=peak,
        )


def watch(command: Sequence[str]) -> tuple[int, str, str, int]:
    """Run it: its exit code, what it printed and noted, and the most memory that it was seen to have, in bytes."""
    with tempfile.TemporaryFile() as printed, tempfile.TemporaryFile() as noted:
        with subprocess.Popen(command, stdout=printed, stderr=noted, stdin=subprocess.DEVNULL) as process:
            peak = 0
            while process.poll() is None:
                peak = max(peak, peak_rss(process.pid))
                time.sleep(_LOOK)
        texts = []
        for file in (printed, noted):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
        return process.returncode, texts[0], texts[1], peak


def times(said: str) -> tuple[float, float]:
    """Milliseconds of the whole run without loading, and of each step's search through the logits.

    Raises:
        LlamaCppFailed: the tool did not say.
    """
    found = _TIMES.search(said)
    if found is None:
        raise _Unfinished(f"there is no line with the total time in what the tool said: {said[-2000:]}")
    return float(found[1]), float(found[3])


def answer(printed: str, said: str, prompt: Sequence[int], length: int) -> list[int]:
    """The tokens behind the prompt.

    Args:
        printed: what the tool printed; `said` has its messages as well.
        length: of the answer.
    Raises:
        LlamaCppFailed: there are fewer or more of them.
    """
    for text in (printed, said):
        _, _, behind = text.rpartition("total time:")
        tokens = [int(token) for token in _WORD.findall(behind)]
        if tokens[: len(prompt)] == list(prompt) and len(tokens) == len(prompt) + length:
            tokens = tokens[len(prompt) :]
        if len(tokens) == length:
            return tokens
    raise _Unfinished(f"{length} tokens were expected behind the prompt: {said[-2000:]}")
