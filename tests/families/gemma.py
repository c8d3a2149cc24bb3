"""DiffusionGemma for tests: random checkpoints that transformers writes, and forwards of spans over paged memory."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor
from transformers import (
    DiffusionGemmaConfig,
    DiffusionGemmaForBlockDiffusion,
    DiffusionGemmaTextConfig,
    Gemma4VisionConfig,
)

from diffulex_core.attention.cpu import TorchCPU
from diffulex_core.context import BuildContext, ForwardContext, SoftInputs
from diffulex_core.distributed import ALONE, Communicator
from diffulex_core.kernels.layers import LayerKernels
from diffulex_core.kv_store import KVStore
from diffulex_core.packing import PackedStep, pack
from diffulex_core.pattern import Phase
from diffulex_core.placed import PlacedLayout
from diffulex_core.protocols import AttentionBackend
from diffulex_core.sampling_params import SamplingParams
from diffulex_core.types import Span, StepPlan, Window
from diffulex_core.weights import load_weights
from diffulex_gemma.config import gemma_spec
from diffulex_gemma.model import DiffusionGemma
from diffulex_gemma.pattern import CausalCanvas
from diffulex_gemma.weights import WEIGHTS

CPU = torch.device("cpu")
VOCAB, CANVAS, SLIDING_WINDOW = 97, 4, 5


def native_model(seed: int = 0, **text: Any) -> DiffusionGemmaForBlockDiffusion:
    """A tiny random network of transformers, in which no norm, scale or scalar is an identity."""
    sizes: dict[str, Any] = {
        "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 6,
        "num_attention_heads": 4, "num_key_value_heads": 2, "num_global_key_value_heads": 1, "head_dim": 8,
        "global_head_dim": 16, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 12,
        "sliding_window": SLIDING_WINDOW, "use_bidirectional_attention": "vision", "max_position_embeddings": 256,
    }  # fmt: skip
    vision = Gemma4VisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1,
        head_dim=8, position_embedding_size=16, patch_size=2,
    )  # fmt: skip
    config = DiffusionGemmaConfig(
        text_config=DiffusionGemmaTextConfig(**{**sizes, **text}), vision_config=vision, canvas_length=CANVAS
    )
    config._attn_implementation = "eager"
    model = DiffusionGemmaForBlockDiffusion(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith("embed_scale"):
                continue
            if name.endswith(("norm.weight", "scale", "scalar")) or "layernorm" in name:
                tensor.copy_(1 + 0.3 * torch.randn(tensor.shape, generator=generator))
            elif tensor.dim() > 1:
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * tensor.shape[-1] ** -0.5)
    model.eval()
    return model


def save(model: DiffusionGemmaForBlockDiffusion, folder: Path) -> Mapping[str, Any]:
    """Write the checkpoint as transformers does and return its config.json."""
    model.save_pretrained(folder)
    config: Mapping[str, Any] = json.loads((folder / "config.json").read_text())
    return config


def load(
    folder: Path, dtype: torch.dtype = torch.float32, tp: Communicator = ALONE, kernels: LayerKernels | None = None
) -> DiffusionGemma:
    """Our network with the weights of a folder, through the public loader."""
    config = json.loads((folder / "config.json").read_text())
    ctx = BuildContext(dtype=dtype, device=torch.device("meta"), tp=tp, kernels=kernels)
    model = DiffusionGemma(gemma_spec(config), ctx)
    load_weights(model, WEIGHTS, folder, config, dtype=dtype, device=CPU, progress=False)
    return model


@attrs.frozen(kw_only=True, eq=False)
class Fed:
    """Rows of one sequence: tokens from `start` on, final below `final_end`, canvas from there on.

    Attributes:
        table: physical page of each logical page.
        soft: [canvas rows, hidden] what the step before believed of them; None = the first step.
    """

    tokens: Sequence[int]
    start: int = 0
    final_end: int
    table: Sequence[int]
    soft: Tensor | None = None


def plan_of(sequences: Sequence[Fed]) -> StepPlan:
    """A plan that feeds these rows and samples none."""
    windows = []
    for number, fed in enumerate(sequences):
        span = Span(
            start=fed.start,
            tokens=np.array(fed.tokens),
            catch_up=0,
            store_until=fed.final_end,
            phase=Phase.DECODE,
            groups=(),
            advances=False,
        )
        windows.append(
            Window(
                request_id=number,
                span=span,
                prompt_len=0,
                page_table=np.array(fed.table),
                params=SamplingParams(),
                draw=0,
            )
        )
    return StepPlan(step=0, windows=tuple(windows))


class Bench:
    """A network with pages, as the engine's runner has them; pages hold NaN until they are written."""

    def __init__(
        self,
        model: DiffusionGemma,
        *,
        page_size: int = 4,
        num_pages: int = 12,
        backend: AttentionBackend | None = None,
    ) -> None:
        self.model, self.page_size = model, page_size
        self.backend = backend or TorchCPU()
        self.dtype = model.embed.weight.dtype
        self.store = KVStore.allocate(model.kv_geometry, num_pages, page_size, self.dtype, CPU)
        for tensor in (*self.store.key_pages, *self.store.value_pages):
            tensor.fill_(float("nan"))

    @torch.inference_mode()
    def run(self, *sequences: Fed) -> list[Tensor]:
        """One forward over all of them: the final hidden states [rows, hidden] of each."""
        step = self._pack(sequences)
        context = self._context(step, self._soft(sequences))
        hidden = self.model(torch.from_numpy(step.input_ids), torch.from_numpy(step.layout.positions), context)
        lengths = [len(fed.tokens) for fed in sequences]
        return list(hidden[: sum(lengths)].split(lengths))

    def logits(self, *sequences: Fed) -> list[Tensor]:
        """As `run`, through the head: [rows, vocab]."""
        hidden = self.run(*sequences)
        with torch.inference_mode():
            return list(self.model.logits(torch.cat(hidden)).split([len(rows) for rows in hidden]))

    @torch.inference_mode()
    def soft(self, logits: Tensor) -> Tensor:
        """What a canvas's logits become for its next step."""
        return self.model.soft_embeddings(logits)

    def stored(self, layer: int, table: Sequence[int], end: int) -> tuple[Tensor, Tensor]:
        """[end, kv_heads, head_dim] keys and values of a sequence in one layer."""
        keys, values = self.store.key_pages[layer], self.store.value_pages[layer]
        pages = torch.tensor(table)
        return keys[pages].flatten(0, 1)[:end], values[pages].flatten(0, 1)[:end]

    def context(self, *sequences: Fed) -> ForwardContext:
        """What the network is told besides its inputs."""
        return self._context(self._pack(sequences), self._soft(sequences))

    def _pack(self, sequences: Sequence[Fed]) -> PackedStep:
        return pack(plan_of(sequences), CausalCanvas(block_size=CANVAS), self.model.windows, self.page_size)

    def _soft(self, sequences: Sequence[Fed]) -> SoftInputs | None:
        rows, parts, offset = list[int](), list[Tensor](), 0
        for fed in sequences:
            if fed.soft is not None:
                first = fed.final_end - fed.start
                rows += range(offset + first, offset + len(fed.tokens))
                parts.append(fed.soft)
            offset += len(fed.tokens)
        return SoftInputs(rows=torch.tensor(rows), embeddings=torch.cat(parts)) if parts else None

    def _context(self, step: PackedStep, soft: SoftInputs | None) -> ForwardContext:
        placed = PlacedLayout.of(step.layout, self.page_size, torch.device("cpu"))
        return ForwardContext(
            slots=placed.slots,
            key_pages=self.store.key_pages,
            value_pages=self.store.value_pages,
            batches=placed.batches,
            backend=self.backend,
            final=placed.final,
            soft=soft,
        )
