"""The server's configuration keys, in the groups in which `diffulex serve --help` shows them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import attrs

from diffulex_core.config import Origin
from diffulex_core.plugin import key


@attrs.frozen(kw_only=True)
class ServerSection:
    """Where the server listens and what it says."""

    host: str = key("127.0.0.1", "Address to listen on; 0.0.0.0 lets other machines in, so set api_key first.")
    port: int = key(8000, "Port to listen on; 0 takes a free one.", minimum=0, maximum=65535)
    served_model_name: str | None = key(None, "Name under which clients ask for the model; null = the model's own.")
    backend: Literal["process", "inline"] = key("process", "Run the engine in a process of its own, or in a thread.")
    log_level: Literal["debug", "info", "warning", "error"] = key("info", "Least important messages to log.")
    log_format: Literal["json", "text"] = key("text", "JSON objects for machines, or lines for people.")


@attrs.frozen(kw_only=True)
class LimitsSection:
    """How much a client may ask for, and how long anything may take."""

    max_queue: int = key(256, "Requests that may wait beyond those that run; more are told to come back.", minimum=0)
    max_body_bytes: int = key(2_000_000, "Size of a request's body.", minimum=1000)
    max_prompt_tokens: int | None = key(None, "Tokens of a prompt; null = what the model can take.", minimum=1)
    max_n: int = key(16, "Answers that one request may ask for, over all of its prompts.", minimum=1)
    request_timeout: float | None = key(600.0, "Seconds that a request may take; null = no limit.", above=0)
    head_timeout: float = key(
        20.0, "Seconds in which a request's head must arrive; a connection without one is closed.", above=0
    )
    body_timeout: float = key(30.0, "Seconds in which a request's body must arrive.", above=0)
    drain_timeout: float = key(30.0, "Seconds that running requests have to finish when the server stops.", minimum=0)


@attrs.frozen(kw_only=True)
class SecuritySection:
    """Who may ask."""

    api_key: str | None = key(
        None, "Key that all routes but /health and the page demand; better set as DIFFULEX_SERVE__API_KEY than typed."
    )
    cors_origins: tuple[str, ...] = key((), "Web origins whose pages may ask; none = only pages of the server's own.")
    allowed_hosts: tuple[str, ...] = key(
        (),
        "Names under which clients may ask, such as api.example.com or *.example.com; none = only local ones where the "
        "server listens on a loopback address without an api_key, any elsewhere; * = any.",
    )
    enable_profiling: bool = key(False, "Offer /start_profile and /stop_profile.")


@attrs.frozen(kw_only=True)
class JobsSection:
    """Answers that are fetched later."""

    job_ttl: float = key(600.0, "Seconds that a finished job is kept.", above=0)
    max_jobs: int = key(1000, "Jobs that are kept, finished or not; more are told to come back.", minimum=1)


@attrs.frozen(kw_only=True)
class RecoverySection:
    """What happens when an engine fails."""

    restart: bool = key(True, "Start an engine again when it died, or got stuck.")
    load_timeout: float | None = key(
        1800.0, "Seconds that an engine may take to load; null = any. Later it counts as dead.", above=0
    )
    stall_timeout: float | None = key(
        300.0, "Seconds that an engine with work may say nothing before it counts as stuck; null = any.", above=0
    )


@attrs.frozen(kw_only=True)
class ServeOptions:
    """All keys of the server.

    Attributes:
        origins: who set each key, by its name; those that are missing have their default.
    """

    server: ServerSection = attrs.field(factory=ServerSection)
    limits: LimitsSection = attrs.field(factory=LimitsSection)
    security: SecuritySection = attrs.field(factory=SecuritySection)
    jobs: JobsSection = attrs.field(factory=JobsSection)
    recovery: RecoverySection = attrs.field(factory=RecoverySection)
    origins: Mapping[str, Origin] = attrs.field(factory=dict, eq=False, repr=False)


TITLE = "serve"
"""Under which a config file nests these keys, and the section of their environment variables."""

SECRETS = frozenset({"api_key"})
"""Keys whose values nobody is told."""
