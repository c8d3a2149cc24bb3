"""The problem generator and its split."""

from __future__ import annotations

import random
import re

from hypothesis import given, strategies as st

from diffulex_tiny import problems


@given(seed=st.integers(0, 2**32), split=st.sampled_from(["train", "eval"]))
def test_an_answer_works_its_problem_out_correctly(seed: int, split: problems.Split) -> None:
    problem = problems.sample(random.Random(seed), split, spell_names=0.5)
    first, second = (part.strip() for part in problem.answer.split(".")[:2])
    for step in (first, second):
        left, right = step.split(" = ")
        a, op, b = left.split(" ")
        assert int(a) + (int(b) if op == "+" else -int(b)) == int(right)
    assert first.split(" = ")[1] == second.split(" ")[0]
    assert problem.answer.endswith(f"The answer is {problem.results[1]}.")
    assert min(problem.results) >= 0
    assert max(problem.operands) <= problems.MAX_OPERAND


@given(seed=st.integers(0, 2**32), split=st.sampled_from(["train", "eval"]))
def test_a_prompt_shows_its_operands_in_order_and_they_decide_the_split(seed: int, split: problems.Split) -> None:
    problem = problems.sample(random.Random(seed), split, spell_names=0.5)
    shown = tuple(int(number) for number in re.findall(r"\d+", problem.prompt))
    assert shown == problem.operands
    assert problems.split_of(shown) == split


def test_no_prompt_of_evaluation_can_occur_in_training() -> None:
    asked = {problem.prompt for problem in problems.problems(1, "eval", 500)}
    assert len(asked) == 500
    trained = {problem.operands for problem in problems.problems(5, "train", 4000)}
    numbers = {tuple(int(number) for number in re.findall(r"\d+", prompt)) for prompt in asked}
    assert numbers.isdisjoint(trained)
    assert {problems.split_of(operands) for operands in trained} == {"train"}


def test_the_same_seed_gives_the_same_problems() -> None:
    assert list(problems.problems(3, "eval", 20)) == list(problems.problems(3, "eval", 20))
    assert list(problems.problems(3, "eval", 20)) != list(problems.problems(4, "eval", 20))


def test_all_templates_operations_and_the_whole_range_occur() -> None:
    drawn = list(problems.problems(7, "train", 3000))
    for opening in ("There are", "A shop has", "First"):
        assert any(opening in problem.prompt for problem in drawn)
    assert {tuple(re.findall(r"[+-]", problem.answer)) for problem in drawn} == {
        (first, second) for first in "+-" for second in "+-"
    }
    assert {number for problem in drawn for number in problem.operands} == set(range(1, problems.MAX_OPERAND + 1))


def test_evaluation_asks_what_the_cards_were_measured_on() -> None:
    [first] = problems.problems(1, "eval", 1)
    asked = "A shop has 13 tickets. It buys 26 more in the morning and sells 8 in the evening."
    assert first.prompt == f"Q: {asked} How many tickets does the shop have now?"
    assert first.answer == "13 + 26 = 39. 39 - 8 = 31. The answer is 31."
