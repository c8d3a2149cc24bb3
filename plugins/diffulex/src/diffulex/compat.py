"""dLLM-Serve's calls over a Diffulex engine: the same arguments, the same shape of the results.

Every request runs its whole canvas, as there. What differs on purpose: a text is cut at the first end token and
`full_text` keeps all of it, lists must be equally long, and a request that cannot be served says why.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, TypedDict

import attrs

from diffulex_core.admission import Prompt, as_list, check_params
from diffulex_core.config import CacheSection
from diffulex_core.engine import Diffulex
from diffulex_core.errors import InvalidSamplingParams
from diffulex_core.outputs import ReqTrajectory
from diffulex_core.sampling_params import SamplingParams
from diffulex_core.sparse import SparseConfig
from diffulex_core.tokenizer import decode
from diffulex_core.types import CompletionReason

logger = logging.getLogger(__name__)

DEFAULTS = {
    "decoding_strategy": "llada_canvas",
    "gen_length": 128,
    "steps": 128,
    "max_num_batched_tokens": 16384,
    "max_num_reqs": 512,
    "max_logits_tokens": 1024,
    "gpu_memory_utilization": 0.8,
}
"""dLLM-Serve's, where they differ from Diffulex's. It runs LLaDA's algorithm on every model."""

_OTHER_NAMES = {"max_num_seqs": "max_num_reqs", "max_logprobs": "max_logits_tokens", "eos": "eos_token_ids"}
_WITHOUT_MEANING = {
    "log_optimize_level": "logits are always made of the sampled rows alone, at most max_logits_tokens at a time",
    "hf_config": "config.json is read from the checkpoint's directory",
    "model_type": "config.json names the model's family, and model_name can",
}
"""Keys of dLLM-Serve that are accepted with a warning, and why they do nothing."""
_PAGE = 256
"""Positions of a page of dLLM-Serve unless `kvcache_block_size` says otherwise."""


Sparse = SparseConfig | Mapping[str, Any]
"""A sparse cache, or a dict of its fields."""


class Output(TypedDict):
    """One answer.

    `text` ends before the first end token; `token_ids` are all ids of the canvas and `full_text` all of them as text,
    special tokens included. `error` is there when the request could not be served.
    """

    text: str
    token_ids: list[int]
    full_text: str
    error: NotRequired[str]


class LLM:
    """An engine behind dLLM-Serve's calls. A context manager; `exit()` frees the device memory as well."""

    def __init__(self, model: str, **options: Any) -> None:
        """
        Args:
            model: a checkpoint, as for `Diffulex`.
            options: keys of dLLM-Serve or of `Diffulex`; one that nobody owns is ignored with a warning. The number
                of its pages is read as the positions that they hold.
        Raises:
            ConfigError, CheckpointError, UnknownNameError: see `Diffulex`.
        """
        self._engine = Diffulex(model, **{**DEFAULTS, **_translated(options)})

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *exception: object) -> None:
        self.exit()

    @property
    def engine(self) -> Diffulex:
        """The engine, for everything that dLLM-Serve has no call for."""
        return self._engine

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams],
        sparse_configs: Sparse | Sequence[Sparse | None] | None = None,
        use_tqdm: bool = True,
    ) -> list[Output]:
        """Answer all prompts, in the order given.

        Args:
            prompts: texts, or lists of token ids; one of them is a list of one.
            sampling_params: one for all, or one for each prompt.
            sparse_configs: the sparse cache or a dict of its fields, one for all or one (or None) for each prompt;
                None = as the sampling parameters or else the engine's keys say.
            use_tqdm: show a progress bar.
        Raises:
            InvalidSamplingParams: the lists differ in length, or a sparse configuration cannot be used.
        """
        prompts = as_list(prompts)
        sampling_params = check_params(sampling_params, len(prompts))
        if isinstance(sparse_configs, str) or not isinstance(sparse_configs, Sequence):
            sparse_configs = [sparse_configs] * len(prompts)
        if len(sparse_configs) != len(prompts):
            raise InvalidSamplingParams(
                f"{len(prompts)} prompts but {len(sparse_configs)} sparse configurations; give one for all, or "
                "one for each prompt."
            )
        params = [_whole(each, sparse) for each, sparse in zip(sampling_params, sparse_configs, strict=True)]
        return [self._output(answer) for answer in self._engine.generate(prompts, params, use_tqdm=use_tqdm)]

    def add_request(self, prompt: Prompt, sampling_params: SamplingParams, sparse_config: Sparse | None = None) -> int:
        """Queue a prompt; returns its id.

        Raises:
            RequestError: it cannot be served.
        """
        return self._engine.add_request(prompt, _whole(sampling_params, sparse_config))

    def step(self) -> tuple[list[tuple[int, list[int]]], int]:
        """Run one forward.

        Returns:
            Id and canvas of each request that is done, and minus the number of requests that took part.
        """
        result = self._engine.step()
        finished = [(record.req_id, list(record.token_ids)) for record in result.finished]
        return finished, 0 if result.plan is None else -len(result.plan.windows)

    def is_finished(self) -> bool:
        """Whether nothing waits and nothing runs."""
        return self._engine.is_finished()

    def exit(self) -> None:
        """Free the device memory. Calling it again does nothing."""
        self._engine.close()

    def _output(self, answer: ReqTrajectory) -> Output:
        ids, ends = list(answer.token_ids), self._engine.config.model.eos_token_ids
        end = next((at for at, token in enumerate(ids) if token in ends), len(ids))
        text = decode(self._engine.tokenizer, ids[:end], skip_special_tokens=True)
        output = Output(
            # A stop string may begin inside a token.
            text=min(text, answer.text, key=len) if answer.completion_reason is CompletionReason.STOP_STRING else text,
            token_ids=ids,
            full_text=decode(self._engine.tokenizer, ids, skip_special_tokens=False),
        )
        if answer.error is not None:
            output["error"] = answer.error
        return output


def _translated(options: Mapping[str, Any]) -> dict[str, Any]:
    """dLLM-Serve's keys under Diffulex's names; the others as they are."""
    given = {}
    for name, value in options.items():
        if name in _WITHOUT_MEANING:
            logger.warning("%s=%r has no effect here: %s.", name, value, _WITHOUT_MEANING[name])
        else:
            given[_OTHER_NAMES.get(name, name)] = value
    if given.get("eos_token_ids") == -1:  # "not known" there
        del given["eos_token_ids"]
    if "torch_device" in given:
        device = given.pop("torch_device")
        given |= {} if device is None else {"device": str(device)}
    page, pages = given.pop("kvcache_block_size", _PAGE), given.pop("num_kvcache_blocks", -1)
    if pages > 0:
        given["num_pages"] = pages * page // given.get("page_size", CacheSection().page_size)
    return given


def _whole(params: SamplingParams, sparse: Sparse | None) -> SamplingParams:
    """The same, run to the end of the canvas, with this sparse cache unless it is None."""
    return attrs.evolve(params, ignore_eos=True, sparse=params.sparse if sparse is None else sparse)
