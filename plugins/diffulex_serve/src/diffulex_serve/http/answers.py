"""What the routes answer, for the OpenAPI document. Tests hold the answers against it; a running server does not."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Finish = Literal["stop", "length", "abort", "error"]


class Answer(BaseModel):
    """An object without further fields."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class ErrorDetail(Answer):
    """What is wrong, in OpenAI's words."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(Answer):
    """The answer to a request that failed."""

    error: ErrorDetail


class CachedTokens(Answer):
    """How much of the prompts was in the cache."""

    cached_tokens: int


class Usage(Answer):
    """What an answer cost: OpenAI's counts, those of diffusion, and seconds. Several answers together have no times."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens
    nfe: int = Field(description="Forwards, those of the prompt included.")
    nfe_prefill: int = 0
    nfe_decode: int = 0
    tokens_written: int = Field(default=0, description="Positions that were decided, those past the end included.")
    tokens_edited: int = Field(default=0, description="Times that a decided position took another token.")
    tpf: float = Field(default=0, description="Visible tokens per forward that decodes.")
    queue_time: float | None = None
    ttft: float | None = None
    tpot: float | None = None
    e2e_time: float = 0
    decode_time: float = 0


class Generated(Answer):
    """An answer of `/generate`."""

    id: str
    text: str
    token_ids: list[int]
    full_text: str = Field(description="Text of all decided positions, those past the end of the answer included.")
    full_token_ids: list[int | None] = Field(description="All positions behind the prompt; null where none is decided.")
    nfe: int
    engine_decode_time_s: float = Field(description="Seconds of the forwards in which it decoded, whoever shared them.")
    engine_decode_tokens: int
    engine_decode_tps: float
    finish_reason: Finish
    stop_detail: str
    usage: Usage
    logprobs: list[tuple[float, list[tuple[int, float]]] | None] | None = None


class Aborted(Answer):
    """Whether a request was here to be ended."""

    id: str
    aborted: bool


class Tokens(Answer):
    """Token ids of a text."""

    tokens: list[int]
    count: int
    max_model_len: int


class Text(Answer):
    """The text of token ids."""

    prompt: str


class Done(Answer):
    """It is done."""

    status: Literal["ok"]


class Recorded(Done):
    """A recording is over."""

    files: list[str]


class Pages(Answer):
    """Pages of the KV cache."""

    total: int
    free: int


class LoadingNow(Answer):
    """What an engine does that loads."""

    seconds: float | None
    doing: str


class Replica(Answer):
    """One engine."""

    replica: int
    state: str
    running: int
    waiting: int
    last_step_age_s: float | None
    kv_pages: Pages
    deaths: int
    restarts: int
    last_error: str | None
    loading: LoadingNow | None


class Readiness(Answer):
    """Whether requests are taken, and why not."""

    ready: bool
    engine: str
    draining: bool
    requests: int
    last_step_age_s: float | None
    kv_pages: Pages
    replicas: list[Replica]


class Version(Answer):
    """What runs here."""

    version: str
    core: str
    model: str
    family: str
    strategy: str
    block_size: int
    max_model_len: int
    chat_template: bool
    sampling_defaults: dict[str, Any] = Field(description="What a request gets that leaves sampling parameters out.")


class SetBy(Answer):
    """Who set a key."""

    source: str
    detail: str


class ConfigKey(Answer):
    """One key."""

    key: str
    value: Any
    default: Any
    section: str
    owner: str
    set_by: SetBy
    unused: bool
    built: bool
    help: str


class Config(Answer):
    """The resolved configuration: keys of the engine, and of the server."""

    model_family: str
    decoding_strategy: str
    keys: list[ConfigKey]
    sampling_defaults: dict[str, Any]
    warnings: list[str]
    serve: list[ConfigKey]


class Model(Answer):
    """The model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int
    family: str
    strategy: str


class Models(Answer):
    """All models: one."""

    object: Literal["list"]
    data: list[Model]


class TopToken(Answer):
    """A token that was probable, too."""

    token: str
    logprob: float
    bytes: list[int]


class ChatToken(TopToken):
    """A token of an answer."""

    top_logprobs: list[TopToken]


class ChatLogprobs(Answer):
    """Log probabilities of an answer's tokens."""

    content: list[ChatToken]


class TextLogprobs(Answer):
    """Log probabilities of an answer's tokens, column by column."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class AssistantMessage(Answer):
    """An answer in a conversation."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(Answer):
    """One answer."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: Finish
    stop_detail: str


class ChatAnswer(Answer):
    """The answers to a conversation."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class TextChoice(Answer):
    """One answer."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Finish
    stop_detail: str


class TextAnswer(Answer):
    """The answers to one or several prompts."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage


class JobState(Answer):
    """How a job stands; its answers once it is finished."""

    id: str
    object: Literal["job"]
    status: Literal["running", "finished", "cancelled", "failed"]
    created: int
    expires_in: float | None = Field(description="Seconds until it is forgotten; null while it runs.")
    results: list[Generated] | None
    error: ErrorDetail | None
