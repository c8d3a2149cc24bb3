"""The bodies of requests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import attrs
from pydantic import BaseModel, ConfigDict, Field

from diffulex_core.plugin import InvalidSamplingParams, SamplingParams
from diffulex_serve.stream.protocol import Detail

Whole = Annotated[int, Field(strict=True, ge=-(2**63), lt=2**63)]
"""What fits a message to the engine."""
TokenId = Annotated[int, Field(strict=True, ge=0, lt=2**31)]
Stops = str | Annotated[list[Annotated[str, Field(max_length=256)]], Field(max_length=32)]
TokenIds = Annotated[list[TokenId], Field(min_length=1)]
LONGEST_TOKEN_ID = 10
"""Digits."""
Number = Annotated[float, Field(allow_inf_nan=False)]


class Sampling(BaseModel):
    """The fields of `SamplingParams`; what is left out is the checkpoint's recommendation."""

    model_config = ConfigDict(strict=True, extra="forbid")

    temperature: Number | None = None
    max_tokens: Whole | None = None
    max_nfe: Whole | None = None
    max_repetition_run: Whole | None = None
    ignore_eos: bool | None = None
    top_p: Number | None = None
    top_k: Whole | None = None
    min_p: Number | None = None
    seed: Whole | None = None
    stop: Stops | None = None
    stop_token_ids: list[TokenId] | None = Field(default=None, max_length=1024)
    confidence: str | None = None
    thresholds: dict[str, Number] | None = Field(default=None, max_length=32)
    logit_bias: dict[str, Number] | None = Field(default=None, max_length=1024)
    logprobs: Whole | None = None
    skip_special_tokens: bool | None = None
    sparse: dict[str, Any] | None = None
    gen_length: Whole | None = None
    steps: Whole | None = None
    block_length: Whole | None = None
    cfg_scale: Number | None = None
    remasking: str | None = None
    suppress_eos: bool | None = None
    defer_eos: bool | None = None
    alg: str | None = None
    alg_temp: Number | None = None
    eps: Number | None = None
    skip_empty_steps: bool | None = None


class Generate(Sampling):
    """The body of `/generate`: a prompt, or messages, and how to answer."""

    prompt: str | TokenIds | None = None
    messages: list[Message] | None = Field(default=None, min_length=1)
    stream: bool = False
    stream_mode: Literal["denoise", "block_append", "events"] = "denoise"
    detail: Detail = "tokens+confidence"
    snapshot_every: int = Field(default=0, ge=0)
    min_interval_ms: int = Field(default=0, ge=0, le=60_000)
    mask_symbol: str = Field(default="▨", min_length=1, max_length=4)
    user: str | None = None


class Job(Sampling):
    """The body of `/v1/jobs`: one prompt or several."""

    prompt: str | TokenIds | list[str] | list[TokenIds] = Field(min_length=1)
    user: str | None = None


class Part(BaseModel):
    """A part of a message's content; only text can be read."""

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """A message of a conversation."""

    role: Annotated[str, Field(min_length=1, max_length=64)]
    content: str | list[Part] | None = None

    def plain(self) -> Mapping[str, str]:
        """Role and text."""
        parts = self.content if isinstance(self.content, list) else []
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in parts)
        return {"role": self.role, "content": text}


class StreamOptions(BaseModel):
    """OpenAI's `stream_options`."""

    include_usage: bool = False


class OpenAISampling(BaseModel):
    """What both of OpenAI's routes take. Other fields of theirs are ignored where they have no meaning here.

    Fields of `SamplingParams` that OpenAI does not know may be given too, as with `extra_body` of its client.
    """

    model_config = ConfigDict(extra="ignore")

    model: str | None = None
    temperature: Number | None = None
    top_p: Number | None = None
    max_tokens: Whole | None = None
    n: Whole | None = Field(default=None, ge=1)
    stop: Stops | None = None
    seed: Whole | None = None
    logit_bias: dict[str, Number] | None = Field(default=None, max_length=1024)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    frequency_penalty: Number | None = None
    presence_penalty: Number | None = None
    user: str | None = None
    top_k: Whole | None = None
    min_p: Number | None = None
    max_nfe: Whole | None = None
    max_repetition_run: Whole | None = None
    ignore_eos: bool | None = None
    stop_token_ids: list[TokenId] | None = Field(default=None, max_length=1024)
    thresholds: dict[str, Number] | None = Field(default=None, max_length=32)
    skip_special_tokens: bool | None = None
    gen_length: Whole | None = None
    steps: Whole | None = None
    block_length: Whole | None = None
    cfg_scale: Number | None = None


class ChatCompletion(OpenAISampling):
    """The body of `/v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: Whole | None = None
    logprobs: bool | None = None
    top_logprobs: Whole | None = None
    tools: list[Any] | None = None
    functions: list[Any] | None = None
    response_format: dict[str, Any] | None = None


class Completion(OpenAISampling):
    """The body of `/v1/completions`."""

    prompt: str | TokenIds | list[str] | list[TokenIds] = Field(min_length=1)
    logprobs: Whole | None = None
    echo: bool | None = None
    suffix: str | None = None
    best_of: Whole | None = None


class Tokenize(BaseModel):
    """The body of `/tokenize`."""

    model_config = ConfigDict(extra="forbid")

    prompt: str | None = None
    messages: list[Message] | None = Field(default=None, min_length=1)


class Detokenize(BaseModel):
    """The body of `/detokenize`."""

    model_config = ConfigDict(extra="forbid")

    tokens: list[TokenId]
    skip_special_tokens: bool = False


class Profile(BaseModel):
    """The body of `/start_profile`."""

    model_config = ConfigDict(extra="forbid")

    profile_prefix: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")] | None = None
    profiler_config: dict[str, Any] | None = Field(default=None, max_length=32)


def sampling_params(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> SamplingParams:
    """Sampling parameters from the checkpoint's defaults and what a body gives; None stands for left out.

    Raises:
        InvalidSamplingParams: a value cannot be used.
    """
    values = {**defaults, **{name: value for name, value in given.items() if value is not None}}
    if "logit_bias" in values:
        values["logit_bias"] = {_token(token): bias for token, bias in values["logit_bias"].items()}
    return SamplingParams(**values)


def sampling_values(defaults: Mapping[str, Any]) -> dict[str, Any]:
    """What a request gets that leaves all sampling parameters out, but for those that are tables."""
    values = attrs.asdict(SamplingParams(**defaults), recurse=False)
    return {name: value for name, value in values.items() if name not in ("thresholds", "logit_bias", "sparse")}


def _token(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > LONGEST_TOKEN_ID:
        raise InvalidSamplingParams(f"logit_bias has the key {text[:32]!r}; its keys are token ids.")
    return int(text)


Generate.model_rebuild()
