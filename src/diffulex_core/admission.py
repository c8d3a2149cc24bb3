"""What may enter an engine: prompts and parameters are checked before anything changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from diffulex_core.descriptors import DecodingStrategy
from diffulex_core.errors import EmptyPrompt, InvalidPrompt, InvalidSamplingParams, PromptTooLong
from diffulex_core.pattern import IntArray
from diffulex_core.req_context import ReqContext
from diffulex_core.sampling_params import SamplingParams

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Prompt = str | Sequence[int]


def as_list(prompts: Prompt | Sequence[Prompt]) -> Sequence[Prompt]:
    """The prompts as a list; the very object given when it is one.

    Raises:
        InvalidPrompt: it is neither a prompt nor a list.
    """
    if isinstance(prompts, str):
        return [prompts]
    if not _is_list(prompts):
        raise InvalidPrompt(
            f"The prompts are of type {type(prompts).__name__}; give a text, a list of token ids, or a list of either."
        )
    if len(prompts) > 0 and isinstance(prompts[0], (int, np.integer)):
        return [prompts]  # type: ignore[list-item]
    return prompts  # type: ignore[return-value]


def check_prompt(
    prompt: Prompt, *, tokenizer: PreTrainedTokenizerBase, vocab_size: int, context: ReqContext
) -> IntArray:
    """[n] the prompt's tokens.

    Raises:
        EmptyPrompt, PromptTooLong, InvalidPrompt: it cannot be served.
    """
    ids = encode(prompt, tokenizer) if isinstance(prompt, str) else prompt
    tokens = check_ids(ids, vocab_size=vocab_size, mask_token_id=context.mask_token_id)
    if len(tokens) == 0:
        raise EmptyPrompt("The prompt has no tokens; give some text or at least one token id.")
    if len(tokens) >= context.max_model_len:
        raise PromptTooLong(
            f"The prompt has {len(tokens)} tokens, but max_model_len is {context.max_model_len} and the answer "
            f"needs room too. Shorten it to {context.max_model_len - 1} tokens or raise max_model_len."
        )
    return tokens


def check_ids(ids: Sequence[int], *, vocab_size: int, mask_token_id: int | None) -> IntArray:
    """[n] the token ids of a given text, possibly none.

    Raises:
        InvalidPrompt: they are something else.
    """
    if not _is_list(ids) or not all(map(_is_whole, ids)):
        raise InvalidPrompt("The prompt is neither text nor a flat list of whole token ids.")
    outside = [token for token in ids if not 0 <= token < vocab_size]
    if outside:
        raise InvalidPrompt(f"Token id {outside[0]} is outside the vocabulary (0 to {vocab_size - 1}).")
    tokens = np.array(ids, dtype=np.int64)
    if mask_token_id is not None and (tokens == mask_token_id).any():
        raise InvalidPrompt(
            f"The prompt holds the mask token (id {mask_token_id}), which marks what the model has to fill in. Remove "
            "it from the prompt."
        )
    return tokens


def check_params(given: SamplingParams | Sequence[SamplingParams], count: int) -> Sequence[SamplingParams]:
    """Sampling parameters for each of `count` prompts.

    Raises:
        InvalidSamplingParams: they are something else, or there are more or fewer than prompts.
    """
    if isinstance(given, SamplingParams):
        return [given] * count
    if not _is_list(given) or not all(isinstance(each, SamplingParams) for each in given):
        raise InvalidSamplingParams("The sampling parameters are neither SamplingParams nor a list of them.")
    if len(given) != count:
        raise InvalidSamplingParams(
            f"{count} prompts but {len(given)} sampling parameters; give one for all, or one for each prompt."
        )
    return list(given)


def check_token_ids(params: SamplingParams, vocab_size: int) -> None:
    """Refuse parameters that name tokens which do not exist.

    Raises:
        InvalidSamplingParams: naming the first.
    """
    for name, ids in (("stop_token_ids", params.stop_token_ids), ("logit_bias", params.logit_bias)):
        outside = [token for token in ids if token >= vocab_size]
        if outside:
            raise InvalidSamplingParams(
                f"{name} holds token id {outside[0]}, which is outside the vocabulary (0 to {vocab_size - 1})."
            )


def check_logprobs(params: SamplingParams, strategy: DecodingStrategy) -> None:
    """Refuse log probabilities where the strategy cannot tell them.

    Raises:
        InvalidSamplingParams: naming the strategy.
    """
    if params.logprobs is not None and not strategy.logprobs:
        raise InvalidSamplingParams(
            f"logprobs is {params.logprobs}, but the strategy '{strategy.name}' reports no log probabilities. "
            "Leave logprobs out."
        )


def encode(text: str, tokenizer: PreTrainedTokenizerBase) -> Sequence[int]:
    """The token ids of a text.

    Raises:
        InvalidPrompt: it holds what is no text.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidPrompt(
            f"The prompt is not valid text: character {error.start} is half of a surrogate pair, which is what "
            "undecodable bytes turn into. Read it in its own encoding."
        ) from error
    ids: list[int] = tokenizer.encode(text)
    return ids


def _is_list(value: object) -> bool:
    """Whether `value` has a length and an order and is no text; bytes are neither text nor token ids."""
    if isinstance(value, np.ndarray):
        return value.ndim > 0
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray, memoryview))


def _is_whole(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)
