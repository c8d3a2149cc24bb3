"""Engines and oracles of the strategies that revise tokens, over the parity checkpoint of LLaDA2."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from safetensors.torch import load_file
from transformers import PreTrainedModel

from diffulex_core.outputs import ReqTrajectory
from diffulex_core.sampling_params import SamplingParams
from diffulex_llada.llada2.oracle import hf_reference
from tests.families.oracle_revising import Rules, Step, decode
from tests.integration.engines import EOS, MASK, PARITY, engine

EDIT: Mapping[str, Any] = {"decoding_strategy": "multi_bd", "sampling_mode": "edit"}
DMAX: Mapping[str, Any] = {"decoding_strategy": "dmax"}
COMMON: Mapping[str, Any] = {"block_size": 8, "page_size": 8, "buffer_size": 2, "accept_threshold": 0.6}
VOCABULARY = 288


@cache
def network() -> PreTrainedModel:
    folder = PARITY / "checkpoints" / "llada2"
    model = hf_reference(json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors"))
    return model.requires_grad_(False)


def serve(
    prompts: Sequence[Sequence[int]],
    strategy: Mapping[str, Any],
    *,
    max_tokens: int = 24,
    settings: Mapping[str, Any] | None = None,
    **params: Any,
) -> list[ReqTrajectory]:
    """What an engine answers; greedy and past the end of text unless `params` say otherwise."""
    with engine("llada2", **{**COMMON, **strategy, **(settings or {})}) as ready:
        asked = SamplingParams(**{"temperature": 0.0, "ignore_eos": True, "max_tokens": max_tokens, **params})
        return list(ready.generate([list(prompt) for prompt in prompts], [asked] * len(prompts)))


def check(step: Step, prompt: Sequence[int], strategy: Mapping[str, Any], **rules: Any) -> ReqTrajectory:
    """The engine answers as the oracle does, in as many forwards; `rules` are the oracle's names."""
    ours = {
        "block": "block_size",
        "buffer": "buffer_size",
        "add_block": "add_block_threshold",
        "accept": "accept_threshold",
        "edit": "edit_threshold",
        "remask": "remask_threshold",
        "stability": "token_stability_threshold",
        "penalty": "penalty_lambda",
        "post_edit": "max_post_edit_steps",
        "merge": "token_merge_mode",
        "top_k": "token_merge_top_k",
        "norm": "token_merge_renormalize",
        "weight": "token_merge_weight",
        "exact": "exact_confidence",
        "confident": "confident_commit_threshold",
    }
    max_tokens, ignore_eos = rules.pop("max_tokens", 24), rules.pop("ignore_eos", True)
    settings = {ours[name]: value for name, value in rules.items()}
    if "remask" in rules:
        settings["enable_remask"] = True
    [answer] = serve([prompt], strategy, settings=settings, max_tokens=max_tokens, ignore_eos=ignore_eos)
    told = Rules(mask=MASK, usable=VOCABULARY, eos=EOS, max_tokens=max_tokens, ignore_eos=ignore_eos, **rules)
    tokens, forwards = decode(network(), step, told, prompt)
    assert list(answer.token_ids) == tokens
    assert answer.nfe == forwards
    return answer
