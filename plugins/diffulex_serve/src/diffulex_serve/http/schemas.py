"""The bodies of requests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import attrs
from pydantic import BaseModel, ConfigDict, Field

from diffulex_core.plugin import SamplingParams
from diffulex_serve.stream.protocol import Detail

LONGEST_TOKEN_ID = 10
"""Digits."""
Whole = Annotated[int, Field(strict=True, ge=-(2**63), lt=2**63)]
"""What fits a message to the engine."""
Count = Annotated[int, Field(strict=True, ge=1, lt=2**63)]
Length = Annotated[int, Field(strict=True, ge=1, le=2**20)]
"""Of a canvas, its blocks and its steps."""
Logprobs = Annotated[int, Field(strict=True, ge=0, le=20)]
TokenId = Annotated[int, Field(strict=True, ge=0, lt=2**31)]
Stops = str | Annotated[list[Annotated[str, Field(max_length=256)]], Field(max_length=32)]
TokenIds = Annotated[list[TokenId], Field(min_length=1)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Temperature = Annotated[float, Field(allow_inf_nan=False, ge=0, le=1e6)]
TopP = Annotated[float, Field(allow_inf_nan=False, gt=0, le=1)]
Share = Annotated[float, Field(allow_inf_nan=False, ge=0, le=1)]
Bias = Annotated[float, Field(allow_inf_nan=False, ge=-1e6, le=1e6)]
Biases = Annotated[
    dict[Annotated[str, Field(pattern=rf"^[0-9]{{1,{LONGEST_TOKEN_ID}}}$")], Bias], Field(max_length=1024)
]
"""By token id."""


class AnySampling(BaseModel):
    """The fields of `SamplingParams` that mean the same in every body; what is left out is the checkpoint's advice."""

    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: Count | None = None
    min_p: Share | None = None
    seed: Whole | None = None
    max_tokens: Count | None = None
    max_nfe: Count | None = None
    max_repetition_run: Count | None = None
    ignore_eos: bool | None = None
    stop: Stops | None = None
    stop_token_ids: list[TokenId] | None = Field(default=None, max_length=1024)
    confidence: Literal["prob", "margin", "neg_entropy"] | None = None
    thresholds: dict[str, Number] | None = Field(default=None, max_length=32)
    logit_bias: Biases | None = None
    skip_special_tokens: bool | None = None
    sparse: dict[str, Any] | None = None
    gen_length: Length | None = None
    steps: Length | None = None
    block_length: Length | None = None
    cfg_scale: Annotated[float, Field(allow_inf_nan=False, ge=0, le=1000)] | None = None
    remasking: str | None = None
    suppress_eos: bool | None = None
    defer_eos: bool | None = None
    alg: str | None = None
    alg_temp: Number | None = None
    eps: Number | None = None
    skip_empty_steps: bool | None = None


class Sampling(AnySampling):
    """All fields of `SamplingParams`, and no other."""

    model_config = ConfigDict(strict=True, extra="forbid")

    logprobs: Logprobs | None = None


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


class OpenAISampling(AnySampling):
    """What both of OpenAI's routes take. Other fields of theirs are ignored where they have no meaning here.

    Fields of `SamplingParams` that OpenAI does not know may be given too, as with `extra_body` of its client.
    """

    model_config = ConfigDict(extra="ignore")

    model: str | None = None
    n: Whole | None = Field(default=None, ge=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    frequency_penalty: Number | None = None
    presence_penalty: Number | None = None
    user: str | None = None


class ChatCompletion(OpenAISampling):
    """The body of `/v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Logprobs | None = None
    tools: list[Any] | None = None
    functions: list[Any] | None = None
    response_format: dict[str, Any] | None = None


class Completion(OpenAISampling):
    """The body of `/v1/completions`."""

    prompt: str | TokenIds | list[str] | list[TokenIds] = Field(min_length=1)
    logprobs: Logprobs | None = None
    echo: bool | None = None
    suffix: str | None = None
    best_of: Whole | None = None


class Tokenize(BaseModel):
    """The body of `/tokenize`."""

    model_config = ConfigDict(strict=True, extra="forbid")

    prompt: str | None = None
    messages: list[Message] | None = Field(default=None, min_length=1)


class Detokenize(BaseModel):
    """The body of `/detokenize`."""

    model_config = ConfigDict(strict=True, extra="forbid")

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
        values["logit_bias"] = {int(token): bias for token, bias in values["logit_bias"].items()}
    return SamplingParams(**values)


def sampling_values(defaults: Mapping[str, Any]) -> dict[str, Any]:
    """What a request gets that leaves all sampling parameters out, but for those that are tables."""
    values = attrs.asdict(SamplingParams(**defaults), recurse=False)
    return {name: value for name, value in values.items() if name not in ("thresholds", "logit_bias", "sparse")}


Generate.model_rebuild()
