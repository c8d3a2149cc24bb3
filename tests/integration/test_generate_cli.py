"""`diffulex generate` as it is typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from diffulex_core.cli.app import build_cli, main
from tests.integration.engines import CHECKPOINT, MASK, host

MODEL = ["--model", str(CHECKPOINT)]
FAST = ["--set", "max_model_len=128", "--set", "block_size=8", "--temperature", "0", "--max-tokens", "12"]


def run(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(build_cli(host()), ["generate", *arguments], input=stdin)


def test_answers_and_metrics_are_printed() -> None:
    result = run(*MODEL, *FAST, "hello", "world")
    assert result.exit_code == 0, result.output
    assert "hello" in result.output
    assert "2 prompts" in result.output
    assert "tokens per decode forward (TPF)" in result.output


def test_json_is_for_machines() -> None:
    result = run(*MODEL, *FAST, "--json", "--ignore-eos", "hello")
    data = json.loads(result.stdout)
    [answer] = data["answers"]
    assert answer["prompt"] == "hello"
    assert len(answer["token_ids"]) == 12
    assert MASK not in answer["token_ids"]
    assert data["metrics"]["total_generated_tokens"] == 12


def test_log_probabilities_are_part_of_the_json() -> None:
    result = run(*MODEL, *FAST, "--json", "--ignore-eos", "--logprobs", "2", "hello")
    [answer] = json.loads(result.stdout)["answers"]
    assert [each["token_id"] for each in answer["logprobs"]] == answer["token_ids"]
    assert all(each["top"][0] == [each["token_id"], each["logprob"]] for each in answer["logprobs"])
    refused = run(*MODEL, *FAST, "--logprobs", "2", "hello")
    assert refused.exit_code == 2
    assert "add --json" in refused.output


def test_arguments_a_file_and_stdin_give_the_same_answers(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("hello\n\nworld\n")
    ways = [
        run(*MODEL, *FAST, "--json", "hello", "world"),
        run(*MODEL, *FAST, "--json", "--file", str(path)),
        run(*MODEL, *FAST, "--json", stdin="hello\n\nworld\n"),
        run(*MODEL, *FAST, "--json", "--file", "-", stdin="hello\nworld\n"),
    ]
    answers = [[each["text"] for each in json.loads(way.stdout)["answers"]] for way in ways]
    assert answers == [answers[0]] * 4


def test_live_draws_the_canvas_and_ends_with_the_answer() -> None:
    plain = json.loads(run(*MODEL, *FAST, "--json", "--ignore-eos", "hello").stdout)
    result = run(*MODEL, *FAST, "--live", "--ignore-eos", "hello")
    assert result.exit_code == 0, result.output
    assert f"12 tokens in {plain['answers'][0]['nfe']} forwards" in result.output


def test_a_failed_prompt_is_named_and_sets_the_exit_status() -> None:
    result = run(*MODEL, *FAST, "hello", "x" * 300)
    assert result.exit_code == 1
    assert "PromptTooLong" in result.output
    assert "1 prompts" not in result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([*MODEL, "--json", "--live", "x"], "give one of them"),
        ([*MODEL, "--file", "-", "x"], "give one of them"),
        ([*MODEL, "--set", "block_size"], "KEY=VALUE"),
    ],
)
def test_contradictory_options_are_refused(arguments: list[str], words: str) -> None:
    result = run(*arguments, stdin="x\n")
    assert result.exit_code == 2
    assert words in result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "./nowhere", "x"], "no directory"),
        ([*MODEL, "--set", "blok_size=8", "x"], "block_size"),
        ([*MODEL, "--set", "block_size=7", "x"], "block_size"),
        ([*MODEL, "--temperature", "-1", "x"], "temperature"),
        ([*MODEL, "--max-tokens", "0", "x"], "max_tokens"),
        (["x"], "No model is named"),
    ],
)
def test_errors_are_a_message_and_status_2_without_a_traceback(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["generate", *arguments])
    shown = capsys.readouterr().err
    assert ended.value.code == 2
    assert words in shown
    assert "Traceback" not in shown


def test_no_prompt_at_all_is_explained() -> None:
    result = run(*MODEL, stdin="\n \n")
    assert result.exit_code == 2
    assert "no line with text" in result.output
