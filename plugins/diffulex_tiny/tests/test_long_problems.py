"""Problems of four to six steps: told in the words that exist, worked out correctly, split like the others."""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import given, strategies as st

from diffulex_tiny import problems
from diffulex_tiny.recipe.tokenizer import build_tokenizer

TOKENIZER = build_tokenizer()
EQUATION = re.compile(r"(\d+) ([+-]) (\d+) = (\d+)\.")


@given(seed=st.integers(0, 2**32), split=st.sampled_from(["train", "eval"]))
def test_an_answer_goes_through_all_steps_correctly(seed: int, split: problems.Split) -> None:
    problem = problems.sample(random.Random(seed), split, task="long")
    equations = EQUATION.findall(problem.answer)
    assert len(equations) in problems.LONG_STEPS
    before = problem.operands[0]
    for (left, sign, right, after), operand, result in zip(
        equations, problem.operands[1:], problem.results, strict=True
    ):
        assert (int(left), int(right), int(after)) == (before, operand, result)
        assert result == before + (operand if sign == "+" else -operand)
        before = result
    assert problem.answer.endswith(f"The answer is {problem.results[-1]}.")
    assert 0 <= min(problem.results) <= max(problem.results) <= 2 * problems.MAX_OPERAND


@given(seed=st.integers(0, 2**32), split=st.sampled_from(["train", "eval"]))
def test_a_prompt_shows_the_operands_in_order_and_they_decide_the_split(seed: int, split: problems.Split) -> None:
    problem = problems.sample(random.Random(seed), split, task="long")
    shown = tuple(int(number) for number in re.findall(r"\d+", problem.prompt))
    assert shown == problem.operands
    assert problems.split_of(shown) == split


@given(seed=st.integers(0, 2**32))
def test_an_answer_restates_what_the_prompt_told_and_where_things_stand(seed: int) -> None:
    problem = problems.sample(random.Random(seed), "train", task="long")
    *sentences, _ = problem.answer.split(". ")
    told, stands = sentences[::2], sentences[1::2]
    for sentence, state, result in zip(told, stands, problem.results, strict=True):
        clause = sentence.split(",")[0].split(" ", 1)[1]
        assert clause in problem.prompt
        assert f" {result} " in state


def test_answers_have_60_to_120_tokens_and_every_word_is_one_of_the_vocabulary() -> None:
    lengths = set()
    for problem in problems.problems(2, "train", 500, "long"):
        prompt, answer = TOKENIZER.encode(problem.prompt).ids, TOKENIZER.encode(problem.answer).ids
        assert TOKENIZER.encode(problem.prompt + problem.answer).ids == prompt + answer
        assert len(answer) == len(re.findall(r"[A-Za-z]+|\d+|[^\sA-Za-z0-9]", problem.answer))
        lengths.add(len(answer))
    assert 60 <= min(lengths) <= 75
    assert 105 <= max(lengths) <= 120


def test_no_long_prompt_of_evaluation_can_occur_in_training() -> None:
    asked = {problem.operands for problem in problems.problems(1, "eval", 300, "long")}
    trained = {problem.operands for problem in problems.problems(5, "train", 2000, "long")}
    assert asked.isdisjoint(trained)


@pytest.mark.parametrize("opening", ["There are", "A shop has", "First", ", "])
def test_all_stories_occur(opening: str) -> None:
    assert any(opening in problem.prompt for problem in problems.problems(7, "train", 200, "long"))


def test_each_task_has_a_sequence_of_its_own() -> None:
    assert [problem.answer for problem in problems.problems(1, "eval", 3, "two_step")] == [
        problem.answer for problem in problems.problems(1, "eval", 3)
    ]
    first, again = (list(problems.problems(1, "eval", 20, "long")) for _ in range(2))
    assert first == again
    assert {len(problem.operands) for problem in first} <= {5, 6, 7}
