"""What a plan says, as plain numbers, and whether it is a value that can travel."""

from __future__ import annotations

import pickle

import numpy as np

from diffulex_core.testing.check import CheckFailed
from diffulex_core.types import StepPlan, Window, Windows


def fingerprint(plan: StepPlan) -> object:
    """Everything in a plan that a runner goes by, copied."""
    return (plan.step, tuple(plan.ended), tuple(_of_window(window) for window in plan.windows))


def travels(plan: StepPlan) -> None:
    """Raise CheckFailed unless a plan is made of frozen values and comes out of pickling as it went in."""
    if not isinstance(plan.windows, (tuple, Windows)) or not isinstance(plan.ended, tuple):
        raise CheckFailed(
            "a plan's `ended` is a tuple, and its `windows` are one or `Windows`; lists can be changed after the fact."
        )
    try:
        copy: StepPlan = pickle.loads(pickle.dumps(plan))
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise CheckFailed(f"the plan of step {plan.step} cannot be pickled: {error}") from error
    if fingerprint(copy) != fingerprint(plan):
        raise CheckFailed(f"the plan of step {plan.step} is another one after pickling.")


def _of_window(window: Window) -> object:
    span = window.span
    second = None if window.second_table is None else tuple(np.asarray(window.second_table).tolist())
    return (
        window.request_id,
        (span.start, tuple(span.tokens.tolist()), span.store_from, span.store_until, span.visible_end, span.phase),
        tuple((tuple(group.positions.tolist()), tuple(group.rows.tolist())) for group in span.groups),
        tuple(np.asarray(window.page_table).tolist()),
        second,
        window.prompt_len,
        window.draw,
        window.preemptions,
    )
