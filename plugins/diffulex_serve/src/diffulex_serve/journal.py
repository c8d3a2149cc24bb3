"""What is known of the HTTP request that is being served: its id, and facts for its line in the log."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="-")
"""Id of the HTTP request that is being served, for logs."""

_FACTS: ContextVar[MutableMapping[str, Any] | None] = ContextVar("facts", default=None)


@contextmanager
def entry(request_id: str) -> Iterator[MutableMapping[str, Any]]:
    """While a request is served: its id for all logs, and the facts that are noted of it."""
    facts: MutableMapping[str, Any] = {}
    id_token, facts_token = REQUEST_ID.set(request_id), _FACTS.set(facts)
    try:
        yield facts
    finally:
        _FACTS.reset(facts_token)
        REQUEST_ID.reset(id_token)


def note(**facts: Any) -> None:
    """Add facts to the line of the request that is being served; numbers of one name are summed, words are joined.

    Outside of a request it does nothing.
    """
    known = _FACTS.get()
    if known is None:
        return
    for name, value in facts.items():
        before = known.get(name)
        if before is None:
            known[name] = value
        elif isinstance(value, int | float) and isinstance(before, int | float):
            known[name] = before + value
        elif str(value) not in str(before).split(","):
            known[name] = f"{before},{value}"
