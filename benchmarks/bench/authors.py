"""The LLaDA authors' sampler over transformers' Llama: the whole canvas in every step, nothing cached.

Our own writing of the published algorithm: logits of all rows, a softmax over all of them, Gumbel noise in float64
where the temperature is above 0, and in each step of a block as many masks decided as its share, the most probable
first.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import torch
from benchmarks.bench.work import Answer, Work
from torch import Tensor, nn


@attrs.frozen(kw_only=True)
class Denoised:
    """A canvas after some steps.

    Attributes:
        tokens: [batch, prompt + output].
        steps: forwards taken.
        first_block: seconds until the first block was decided; None = it was not.
    """

    tokens: Tensor
    steps: int
    first_block: float | None


def shares(masks: int, steps: int) -> list[int]:
    """How many masks each step of a block decides: an even share, the first ones one more."""
    base, more = divmod(masks, steps)
    return [base + (step < more) for step in range(steps)]


def noisy(logits: Tensor, temperature: float) -> Tensor:
    """Scores whose maximum is a draw: `exp(l) / (-ln u) ** T` in float64; at temperature 0 the logits."""
    if temperature == 0:
        return logits
    wide = logits.to(torch.float64)
    noise = (-torch.log(torch.rand_like(wide))) ** temperature
    return wide.exp() / noise


@torch.no_grad()
def denoise(
    model: nn.Module,
    prompt: Tensor,
    *,
    output: int,
    steps: int,
    block_length: int,
    mask: int,
    temperature: float = 0.0,
    threshold: float | None = None,
    most_steps: int | None = None,
) -> Denoised:
    """Fill `output` masks behind each prompt.

    Args:
        model: `LlamaForCausalLM` with full attention; ids [batch, rows] -> `logits` [batch, rows, vocab].
        prompt: [batch, prompt] ids.
        steps: forwards for all blocks together.
        threshold: decide all masks of the block that reach it, at least one, in place of a share (Fast-dLLM's rule).
        most_steps: stop after so many forwards.
    """
    began, done, first_block = time.perf_counter(), 0, None
    batch, start = prompt.shape
    x = torch.full((batch, start + output), mask, dtype=torch.long)
    x[:, :start] = prompt
    blocks = output // block_length
    for block in range(blocks):
        end = start + (block + 1) * block_length
        counts = shares(block_length, steps // blocks)
        for step in range(block_length if threshold is not None else len(counts)):
            masked = x == mask
            if not bool(masked[:, :end].any()):
                break
            if most_steps is not None and done == most_steps:
                return Denoised(tokens=x, steps=done, first_block=first_block)
            logits = model(x, use_cache=False).logits
            chosen = noisy(logits, temperature).argmax(dim=-1)
            probabilities = torch.softmax(logits, dim=-1)
            confidence = probabilities.gather(-1, chosen[..., None]).squeeze(-1)
            confidence[:, end:] = -torch.inf
            chosen = torch.where(masked, chosen, x)
            confidence = torch.where(masked, confidence, -torch.inf)
            for row in range(batch):
                if threshold is None:
                    picked = confidence[row].topk(counts[step]).indices
                elif bool(masked[row, :end].any()):
                    best = confidence[row].argmax()[None]
                    picked = torch.cat((best, (confidence[row] >= threshold).nonzero()[:, 0]))
                else:
                    continue
                x[row, picked] = chosen[row, picked]
            done += 1
        if first_block is None:
            first_block = time.perf_counter() - began
    return Denoised(tokens=x, steps=done, first_block=first_block)


def bidirectional(model: nn.Module) -> None:
    """Let a Llama attend in both directions without any mask, as LLaDA's own network does: the fastest way there is."""
    for layer in model.model.layers:  # type: ignore[union-attr]
        layer.self_attn.is_causal = False


class AuthorsLoop:
    """A contender: see `benchmarks.bench.child`."""

    def __init__(self, *, folder: str, config: Mapping[str, Any], dtype: str) -> None:
        from safetensors.torch import load_file

        from diffulex_llada.oracle import hf_reference

        self._model = hf_reference(config, load_file(f"{folder}/model.safetensors")).to(getattr(torch, dtype))
        self._model.set_attn_implementation("sdpa")
        bidirectional(self._model)
        self._mask = config["mask_token_id"]

    def prepare(self, work: Work, prompts: Sequence[Sequence[int]]) -> None:
        """Keep what `run` shall do."""
        self._work, self._prompts = work, torch.tensor(prompts)

    def run(self) -> Answer:
        """Denoise once."""
        work = self._work
        found = denoise(
            self._model,
            self._prompts,
            output=work.output,
            steps=work.steps,
            block_length=work.block_length,
            mask=self._mask,
            threshold=work.threshold,
            most_steps=work.sampled_steps,
        )
        rows = found.steps * found.tokens.numel()
        return Answer(
            tokens=found.tokens[:, work.prompt :].tolist(),
            steps=found.steps,
            planned_steps=work.steps if work.threshold is None else found.steps,
            rows=rows,
            head_rows=rows,
            first_block=found.first_block,
        )
