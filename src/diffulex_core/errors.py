"""The error tree. Every message names what is wrong, where, and what to do next."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

ALIKE = 8
"""Problems that differ in numbers only: up to so many are all shown."""
EXAMPLES = 3
"""Of more than that, so many are shown."""


class DiffulexError(Exception):
    """Root of every error that diffulex raises on purpose."""


class ConfigError(DiffulexError, ValueError):
    """The configuration cannot be used.

    `problems` lists everything that is wrong, one sentence each; the message shows them all.
    """

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems: tuple[str, ...] = tuple(problems)
        lead = "The configuration has a problem" if len(self.problems) == 1 else "The configuration has problems"
        super().__init__(f"{lead}:\n" + "\n".join(f"  - {problem}" for problem in self.problems))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.problems,), self.__dict__


class PluginError(DiffulexError):
    """A plugin broke the rules of registration: a conflict, a bad reference, a wrong type."""


class UnknownNameError(DiffulexError, LookupError):
    """A name that no plugin registers; the message lists what exists and what could not be loaded."""


class IncompatibleError(ConfigError):
    """A family and a strategy (or backend) that do not fit; the message names the missing capabilities."""


class CheckpointError(DiffulexError):
    """A checkpoint directory that cannot be read: a missing or damaged file, or tensors that do not fit.

    `problems` lists everything found, one sentence each; `owner` names the model family and plugin, where one reads it.
    The message leaves out what differs from other problems in numbers only, such as the same fault in every layer.
    """

    def __init__(self, where: str, problems: Sequence[str], *, owner: str = "") -> None:
        self.where = where
        self.problems: tuple[str, ...] = tuple(problems)
        self.owner = owner
        lead = f"Cannot load {where}{owner and f' into {owner}'}"
        super().__init__(f"{lead}:\n" + "\n".join(f"  - {problem}" for problem in _shortened(self.problems)))

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), owner=self.owner), (self.where, self.problems), self.__dict__


class RequestError(DiffulexError, ValueError):
    """A request that cannot be served. It fails alone; nothing else in the engine changes."""


class EmptyPrompt(RequestError):
    """The prompt has no tokens."""


class PromptTooLong(RequestError):
    """The prompt leaves no room for an answer within `max_model_len`, or can never fit a step or the cache."""


class InvalidPrompt(RequestError):
    """The prompt holds token ids outside the vocabulary, or the mask token."""


class InvalidSamplingParams(RequestError):
    """A sampling parameter is out of range or of the wrong kind."""


class NonFiniteLogits(DiffulexError):
    """The model produced NaN or infinite logits for a request; `request_ids` names those at fault."""

    def __init__(self, request_ids: Sequence[int]) -> None:
        self.request_ids: tuple[int, ...] = tuple(request_ids)
        names = ", ".join(map(str, self.request_ids))
        super().__init__(
            f"Non-finite logits for request(s) {names}. "
            "Check the checkpoint for damaged weights and logit_bias for a ban on every token, or try dtype='float32'."
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.request_ids,), self.__dict__


class OutOfPages(DiffulexError):
    """The KV cache has too few free pages for a reservation; nothing was reserved."""


class WorkerError(DiffulexError, RuntimeError):
    """A worker process of the engine died, or lost the others; the engine cannot go on. Close it and create a new one.

    `replica` and `rank` say which worker it was; `exit_code` is its exit status, negative for a signal, None where it
    did not end by itself.
    """

    def __init__(self, message: str, *, rank: int, replica: int = 0, exit_code: int | None = None) -> None:
        self.rank, self.replica, self.exit_code = rank, replica, exit_code
        super().__init__(message)

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), rank=self.rank), self.args, self.__dict__


class PeerLost(WorkerError):
    """A worker waited for the others longer than `distributed_timeout_seconds`, or its connection to them broke."""


class NoProfiler(DiffulexError, RuntimeError):
    """A profile was asked for, and nothing says what is recorded and where it is written."""


class EngineClosed(DiffulexError, RuntimeError):
    """The engine was closed; create a new one."""


def _shortened(problems: Sequence[str]) -> Iterator[str]:
    """The problems with a few examples of many that are alike."""
    kinds = [re.sub(r"\d+", "#", problem) for problem in problems]
    alike, seen = Counter(kinds), Counter[str]()
    for problem, kind in zip(problems, kinds, strict=True):
        seen[kind] += 1
        if alike[kind] <= ALIKE or seen[kind] <= EXAMPLES:
            yield problem
        elif seen[kind] == EXAMPLES + 1:
            yield f"... and {alike[kind] - EXAMPLES} more like that; this error's `problems` lists them."
