"""The pure parts of benchmarks/serve_load: attacks, readings, figures, and the report in docs/serving.md."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from benchmarks.serve_load import page
from benchmarks.serve_load.attacks import QUICK, SLOW, Kind
from benchmarks.serve_load.load import figures, percentile
from benchmarks.serve_load.questions import MANNERS, Outcome, questions, read
from benchmarks.serve_load.records import Report
from benchmarks.serve_load.server import Server

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("kind", [*QUICK, *SLOW], ids=lambda kind: kind.__name__)
def test_an_attack_follows_from_its_seed_and_others_differ(kind: Kind) -> None:
    attacks = [kind(random.Random(seed)) for seed in range(8)]
    assert attacks == [kind(random.Random(seed)) for seed in range(8)]
    assert len({attack.pieces for attack in attacks}) > 2
    assert all(b"".join(attack.pieces) for attack in attacks)


def test_every_manner_of_client_asks_as_often_and_no_prompt_twice() -> None:
    asked = questions()
    counts = [sum(question.manner == manner for question in asked) for manner in MANNERS]
    assert max(counts) - min(counts) <= 1
    assert len({question.body["prompt"] for question in asked}) == len(asked)
    assert all(question.body["stream"] for question in asked)


def told(*events: Any) -> bytes:
    return b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events)


def heard(manner: str, *events: Any, done: bool = True, status: str = "200 OK") -> Outcome:
    """What is read of a server that says this."""
    words = f"HTTP/1.1 {status}\r\n\r\n".encode() + told(*events) + b"data: [DONE]\n\n" * done

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(words)
        writer.close()

    async def scene() -> Outcome:
        listening = await asyncio.start_server(answer, "127.0.0.1", 0)
        port = listening.sockets[0].getsockname()[1]
        server = Server(process=None, port=port, odd_lines=None)  # type: ignore[arg-type]
        question = next(question for question in questions() if question.manner == manner)
        outcome = await read(server, question)
        listening.close()
        return outcome

    return asyncio.run(scene())


def piece(event: str, text: str, ids: Sequence[int]) -> dict[str, Any]:
    return {"event": event, "text": text, "token_ids": list(ids)}


@pytest.mark.parametrize(("manner", "each", "last"), [("append", "append", "final"), ("events", "block_commit", "end")])
def test_pieces_must_be_what_the_end_says(manner: str, each: str, last: str) -> None:
    pieces = [piece(each, "a", [1]), piece(each, "b", [2, 3])]
    good = heard(manner, *pieces, piece(last, "ab", [1, 2, 3]))
    assert (good.how, good.answer, good.tokens) == ("final", ("ab", (1, 2, 3)), 3)
    assert good.ttft is not None
    for wrong in (piece(last, "ab", [1, 2]), piece(last, "abc", [1, 2, 3]), {"event": "error", "message": "x"}):
        outcome = heard(manner, *pieces, wrong)
        assert (outcome.how, outcome.answer) == ("error", None)


def test_a_completion_ends_with_its_usage() -> None:
    chunks = [{"choices": [{"text": text}], "usage": None} for text in ("a", "", "b")]
    usage = {"choices": [], "usage": {"completion_tokens": 2}}
    assert heard("completions", *chunks, usage).answer == ("ab", 2)
    assert heard("completions", *chunks).how == "error"
    assert heard("completions", *chunks, {"error": {"message": "x"}}).how == "error"


def test_streams_that_are_cut_refused_or_closed_are_no_answers() -> None:
    assert heard("append", piece("append", "a", [1]), done=False).how == "cut"
    assert heard("append", status="429 Too Many Requests").how == "429"


def test_figures_count_what_was_answered() -> None:
    outcomes = [Outcome(how="final", answer=("a", 4), tokens=4, ttft=0.1 * n, seconds=0.2 * n) for n in range(1, 101)]
    found = figures(outcomes, 10.0, {"frontend": 2.0, "clients": 1.0})
    assert (found["requests_per_s"], found["tokens_per_s"], found["frontend_us_per_token"]) == (10.0, 40.0, 5000.0)
    assert found["ttft_p50_s"] == pytest.approx(5.05)
    assert found["ttft_p99_s"] == pytest.approx(9.901)
    assert percentile([], 50) is None
    assert percentile([0.25], 99) == 0.25


def report(*, good: bool) -> Report:
    about = {"commit": "abc", "when": "2026-01-01", "machine": "2 cores of X", "Python": "3.12.1"}
    made = Report(about=about, sizes={}, complete=True)
    made.numbers["one client"] = {"clients": 1, "tokens_per_s": 12.5, "ttft_p50_s": 0.0123, "answer_p99_s": 3.0}
    made.numbers["cancel storm"] = {"requests": 10, "answers": {"left": 9}}
    made.check("pages are free", good, "17 of 18")
    return made


def test_the_report_shows_what_was_measured_and_what_does_not_hold() -> None:
    text = page.render(report(good=True))
    assert "| one client | 1 | - | - | 12.5 | 12.3 ms | - | - | 3.00 s | - |" in text
    assert "- cancel storm: requests 10, answers left: 9" in text
    assert "1 of 1 checks hold." in text
    bad = page.render(report(good=False))
    assert "0 of 1 checks hold. Not so:" in bad
    assert "**pages are free**: 17 of 18" in bad


def test_a_run_that_was_broken_off_is_not_good() -> None:
    made = report(good=True)
    assert made.good
    made.complete = False
    assert not made.good
    assert "did not come to its end" in page.render(made)


def test_a_report_is_read_as_it_was_written(tmp_path: Path) -> None:
    made = report(good=False)
    (tmp_path / "r.json").write_text(made.to_json())
    assert Report.read(tmp_path / "r.json") == made


def test_the_report_in_the_documentation_is_that_of_the_results() -> None:
    text = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    results = Report.read(ROOT / "benchmarks" / "results" / "serve.json")
    assert page.with_report(text, results) == text, "run `python -m benchmarks.serve_load render`"
    assert results.complete
