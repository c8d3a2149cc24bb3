"""Greedy decoding with an oracle from transformers: whole sequences, explicit masks, an explicit shift, no cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor
from transformers import PreTrainedModel

from diffulex_core.engine import Diffulex
from diffulex_core.host import Host
from diffulex_core.outputs import ReqTrajectory
from diffulex_core.sampling_params import SamplingParams
from tests.core.checkpoints import EOS_ID, MASK_ID, VOCAB_SIZE
from tests.core.oracles import Answer, Ask, Setting, decode_alone

VOCABULARY = {"vocab_size": VOCAB_SIZE, "mask_token_id": MASK_ID, "eos_token_id": EOS_ID, "pad_token_id": EOS_ID}
"""Keys of config.json that suit the tokenizer of the written checkpoints."""


@attrs.frozen
class OracleNetwork:
    """A `Network` of the oracle decoder whose logits are those of a transformers model."""

    model: PreTrainedModel

    def __call__(
        self, setting: Setting, ask: Ask, tokens: Sequence[int], step: int
    ) -> Callable[[int], tuple[int, float]]:
        prompt, block = len(ask.prompt), setting.block_size
        ends = [(at // block + 1) * block for at in range(len(tokens))]
        if not setting.full_prefix:
            logits = self._logits(tokens, range(len(tokens)), [range(end) for end in ends])
        elif step == 0:
            views = [range(prompt if at < prompt else ends[at]) for at in range(len(tokens))]
            logits = self._logits(tokens, range(len(tokens)), views)
        else:
            logits = self._after_full_prefix(tokens, prompt, prompt - prompt % block, ends)
        logits[:, setting.mask] = -torch.inf
        probabilities = logits.double().softmax(-1)

        def decide(at: int) -> tuple[int, float]:
            confidence, token = probabilities[at - setting.shifted].max(0)
            return int(token), float(confidence)

        return decide

    def _after_full_prefix(self, tokens: Sequence[int], prompt: int, whole: int, ends: Sequence[int]) -> Tensor:
        """The whole blocks of the prompt as its first forward computed them, what follows block-causally.

        The prompt stands in front once more, by itself, because its last tokens were another thing in that forward.
        """
        rest = range(whole, len(tokens))
        own = [[*range(whole), *range(prompt, prompt + ends[at] - whole)] for at in rest]
        logits = self._logits(
            [*tokens[:prompt], *tokens[whole:]], [*range(prompt), *rest], [*[range(prompt)] * prompt, *own]
        )
        return torch.cat((logits[:whole], logits[prompt:]))

    def _logits(self, tokens: Sequence[int], positions: Sequence[int], seen: Sequence[Sequence[int]]) -> Tensor:
        """[rows, vocab] where row `i` sees the rows `seen[i]`."""
        mask = torch.full((len(tokens), len(tokens)), torch.finfo(torch.float32).min)
        for row, keys in enumerate(seen):
            mask[row, list(keys)] = 0.0
        with torch.inference_mode():
            logits: Tensor = self.model(
                input_ids=torch.tensor([list(tokens)]),
                position_ids=torch.tensor([list(positions)]),
                attention_mask=mask[None, None],
                use_cache=False,
            ).logits[0]
        return logits.clone()


@attrs.frozen(kw_only=True, eq=False)
class Decoding:
    """One checkpoint under one strategy, decoded by the engine and by the oracle.

    Attributes:
        folder: a checkpoint whose config.json has the keys of `VOCABULARY`.
        oracle: the transformers model with its weights.
        host: the plugins.
        setting: what both decode with.
    """

    folder: Path
    oracle: PreTrainedModel
    host: Host
    setting: Setting

    def engine(self, **options: Any) -> Diffulex:
        """An engine; `options` override what follows from the setting."""
        setting = self.setting
        settings = {
            "decoding_strategy": "d2f" if setting.full_prefix else "multi_bd",
            "block_size": setting.block_size,
            "page_size": setting.block_size,
            "buffer_size": setting.buffer_size,
            "add_block_threshold": setting.add_block,
            "semi_complete_threshold": setting.semi_complete,
            "accept_threshold": setting.accept,
            "max_model_len": setting.max_model_len,
            "num_pages": 96,
        }
        return Diffulex(self.folder, host=self.host, strict=True, **{**settings, **options})

    def expected(self, prompt: Sequence[int], max_tokens: int) -> Answer:
        """What the oracle answers, and the forwards and rows that it takes."""
        ask = Ask(prompt=tuple(prompt), seed=0, max_tokens=max_tokens, ignore_eos=True)
        return decode_alone(self.setting, ask, OracleNetwork(self.oracle))

    def check(self, answers: Sequence[ReqTrajectory], prompts: Sequence[Sequence[int]], max_tokens: int) -> None:
        """The engine's answers are the oracle's, token for token."""
        for answer, prompt in zip(answers, prompts, strict=True):
            assert answer.token_ids == self.expected(prompt, max_tokens).tokens, f"prompt of {len(prompt)}"


def greedy(max_tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)


def setting_of(
    *, block_size: int = 4, buffer_size: int = 2, full_prefix: bool = False, shifted: bool = False, accept: float = 0.5
) -> Setting:
    """A setting under which several blocks run and some positions wait."""
    return Setting(
        block_size=block_size,
        buffer_size=buffer_size,
        full_prefix=full_prefix,
        mask=MASK_ID,
        eos=frozenset({EOS_ID}),
        max_model_len=96,
        add_block=0.25,
        semi_complete=0.5,
        accept=accept,
        stability=0.0,
        always_force=False,
        shifted=shifted,
    )


def prompt_tokens(length: int, salt: int = 0) -> list[int]:
    """A prompt of plain byte tokens."""
    return [(11 * i * i + 7 * i + 37 * salt + 3) % 200 + 20 for i in range(length)]
