"""The keys of a config file's `chat` table: what a conversation begins with."""

from __future__ import annotations

import attrs

from diffulex_core.plugin import key


@attrs.frozen(kw_only=True)
class ChatOptions:
    """Sampling parameters; those that are null are the checkpoint's recommendation."""

    temperature: float | None = key(None, "Temperature; 0 = the most probable tokens.", minimum=0)
    top_k: int | None = key(None, "Draw from this many most probable tokens.", minimum=1)
    top_p: float | None = key(None, "Draw from the smallest set that reaches this probability.", above=0, maximum=1)
    max_tokens: int | None = key(None, "Most tokens of an answer.", minimum=1)
    max_nfe: int | None = key(None, "Most forwards of an answer.", minimum=1)
    accept_threshold: float | None = key(None, "Decide positions whose confidence is greater.", minimum=0, maximum=1)


TITLE = "chat"
"""Under which a config file nests these keys, and the section of their environment variables."""
