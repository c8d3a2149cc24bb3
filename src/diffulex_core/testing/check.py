"""A check: one property that implementations of a seam have, with what it proves, why, and what to do when it fails."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Generic, Literal, TypeVar, get_args

import attrs

from diffulex_core.testing.effort import Effort, Tier
from diffulex_core.testing.patience import OutOfPatience

S = TypeVar("S")

Level = Literal["required", "recommended"]
"""Whether a failure is an error or a warning. A new check is recommended for a minor release before it is required."""

PREFIX = "check_"
SECTIONS = ("Why:", "Fix:")
"""What the docstring of a check tells behind its first paragraph."""


class CheckFailed(AssertionError):
    """An implementation lacks a property. The message says where it was seen and what was expected."""


def always(subject: object) -> str | None:
    """The check says something about every subject of its type."""
    return None


@attrs.frozen(kw_only=True)
class Check(Generic[S]):
    """One property of one kind of subject.

    Attributes:
        name: begins with `check_`; what `expected_failures` and reports call it.
        subject: type of what it is run on.
        body: raises, usually `CheckFailed`, when the subject lacks the property.
        level: whether a failure is an error or a warning.
        tier: the least effort at which it runs.
        when: why it says nothing about a subject, or None where it does.
        text: what it proves, why that matters and how to repair a failure.
    """

    name: str
    subject: type[S]
    body: Callable[[S, Effort], None]
    level: Level = attrs.field(default="required", validator=attrs.validators.in_(get_args(Level)))
    tier: Tier = attrs.field(default="fast", validator=attrs.validators.in_(get_args(Tier)))
    when: Callable[[S], str | None] = always
    text: str

    @property
    def summary(self) -> str:
        """The first paragraph of the text, on one line."""
        return " ".join(self.text.split("\n\n")[0].split())

    def __call__(self, subject: S, effort: Effort) -> None:
        """Run the check; raises when the subject lacks the property."""
        try:
            self.body(subject, effort)
        except OutOfPatience as error:
            raise CheckFailed(str(error)) from error


def check(
    subject: type[S],
    *,
    level: Level = "required",
    tier: Tier = "fast",
    when: Callable[[S], str | None] = always,
) -> Callable[[Callable[[S, Effort], None]], Check[S]]:
    """Make a check of a function `check_...(subject, effort)` whose docstring has the sections Why: and Fix:.

    Args:
        subject: type of what it is run on.
        level, tier, when: see `Check`.
    Raises:
        ValueError: the name or the docstring is not of that form.
    """

    def make(body: Callable[[S, Effort], None]) -> Check[S]:
        text = inspect.getdoc(body) or ""
        if not body.__name__.startswith(PREFIX):
            raise ValueError(f"{body.__name__!r} is a check; its name begins with {PREFIX!r}")
        if missing := [section for section in SECTIONS if f"\n{section} " not in text]:
            raise ValueError(f"the docstring of {body.__name__} lacks the section {' and '.join(missing)}")
        return Check(name=body.__name__, subject=subject, body=body, level=level, tier=tier, when=when, text=text)

    return make


AnyCheck = Check[Any]
