"""Adapters for tests: written by hand, or by peft over a network that nobody here wrote."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from torch import Tensor, nn

from diffulex_core.context import BuildContext
from diffulex_core.distributed import ALONE, Communicator
from diffulex_core.protocols import DiffusionModel, WeightResolver
from diffulex_core.weights import load_weights
from diffulex_core.weights.lora import AdapterReport, load_adapter
from tests.core.checkpoints import Checkpoint
from tests.core.forward import CPU, Rows, block_causal, pages, run_model

Build = Callable[[Mapping[str, object], BuildContext], DiffusionModel]
Matrices = Mapping[str, tuple[Tensor, Tensor]]
"""A [rank, in] and B [out, rank] of each layer."""


@attrs.frozen(kw_only=True)
class Family:
    """How a network is built and where its tensors go."""

    build: Build
    weights: WeightResolver

    def load(
        self, checkpoint: Checkpoint, *, dtype: torch.dtype = torch.float32, tp: Communicator = ALONE
    ) -> DiffusionModel:
        model = self.build(checkpoint.config, BuildContext(dtype=dtype, device=torch.device("meta"), tp=tp))
        load_weights(model, self.weights, checkpoint.folder, checkpoint.config, dtype=dtype, device=CPU, progress=False)
        return model

    def adapt(self, model: DiffusionModel, checkpoint: Checkpoint, adapter: Path, *, merge: bool) -> AdapterReport:
        return load_adapter(
            model,
            self.weights,
            checkpoint.folder,
            checkpoint.config,
            adapter,
            merge_weights=merge,
            dtype=torch.float32,
        )

    def adapted(
        self,
        checkpoint: Checkpoint,
        adapter: Path,
        *,
        merge: bool,
        dtype: torch.dtype = torch.float32,
        tp: Communicator = ALONE,
    ) -> DiffusionModel:
        model = self.load(checkpoint, dtype=dtype, tp=tp)
        self.adapt(model, checkpoint, adapter, merge=merge)
        return model


def logits(model: DiffusionModel, length: int = 11, block: int = 4) -> Tensor:
    """[length, vocab] for fixed tokens, block-causal."""
    tokens = [(17 * place + 5) % 90 for place in range(length)]
    rows = Rows(tokens=tokens, key_end=block_causal(length, block), table=[2, 0, 1])
    return run_model(model, [rows], pages(model.kv_geometry, 3, 4))[0]


def oracle_logits(oracle: nn.Module, length: int = 11, block: int = 4) -> Tensor:
    """The same from a network of transformers, with its mask spelled out."""
    ids = torch.tensor([(17 * place + 5) % 90 for place in range(length)])
    seen = torch.arange(length)[None] < torch.tensor(block_causal(length, block))[:, None]
    mask = torch.where(seen, 0.0, torch.finfo(torch.float32).min)[None, None]
    with torch.no_grad():
        output = oracle(input_ids=ids[None], position_ids=torch.arange(length)[None], attention_mask=mask)
    found: Tensor = output.logits[0]
    return found


def adapter_config(**changes: Any) -> dict[str, Any]:
    """An adapter_config.json as peft 0.21 writes it."""
    return {
        "alora_invocation_tokens": None, "alpha_pattern": {}, "arrow_config": None, "auto_mapping": None,
        "base_model_name_or_path": None, "bias": "none", "corda_config": None, "ensure_weight_tying": False,
        "eva_config": None, "exclude_modules": None, "fan_in_fan_out": False, "inference_mode": True,
        "init_lora_weights": True, "kasa_config": None, "layer_replication": None, "layers_pattern": None,
        "layers_to_transform": None, "loftq_config": {}, "lora_alpha": 8, "lora_bias": False, "lora_dropout": 0.1,
        "lora_ga_config": None, "megatron_config": None, "megatron_core": "megatron.core", "modules_to_save": None,
        "monteclora_config": None, "peft_type": "LORA", "peft_version": "0.21.2", "qalora_group_size": 16, "r": 4,
        "rank_pattern": {}, "revision": None, "target_modules": None, "target_parameters": None, "task_type": None,
        "trainable_token_indices": None, "use_bdlora": None, "use_dora": False, "use_qalora": False,
        "use_rslora": False, "velora_config": None, **changes,
    }  # fmt: skip


def random_matrices(shapes: Mapping[str, tuple[int, int]], ranks: Mapping[str, int] | int, seed: int = 0) -> Matrices:
    """Matrices for layers of shape (out, in), large enough that no adapter goes unnoticed."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for path, (out_features, in_features) in shapes.items():
        rank = ranks if isinstance(ranks, int) else ranks[path]
        a = torch.randn(rank, in_features, generator=generator) * in_features**-0.5
        b = torch.randn(out_features, rank, generator=generator) * rank**-0.5
        made[path] = (a, b)
    return made


def adapter_tensors(matrices: Matrices, *, prefix: str = "base_model.model.", infix: str = "") -> dict[str, Tensor]:
    """The tensors of an adapter's file by name."""
    tensors = {}
    for path, (a, b) in matrices.items():
        tensors[f"{prefix}{path}.lora_A{infix}.weight"] = a
        tensors[f"{prefix}{path}.lora_B{infix}.weight"] = b
    return tensors


def write_adapter(folder: Path, tensors: Mapping[str, Tensor], **config: Any) -> Path:
    """Write adapter_config.json and adapter_model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(adapter_config(**config)))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "adapter_model.safetensors")
    return folder


def linear_shapes(checkpoint: Checkpoint) -> dict[str, tuple[int, int]]:
    """(out, in) of every matrix of a checkpoint but the embedding, by path."""
    return {
        name.removesuffix(".weight"): (tensor.shape[0], tensor.shape[1])
        for name, tensor in checkpoint.tensors.items()
        if tensor.dim() == 2 and not name.endswith(("wte.weight", "embed_tokens.weight"))
    }


def tune(oracle: nn.Module, names: Mapping[str, str], config: LoraConfig, folder: Path, seed: int = 0) -> None:
    """Let peft put random adapters into a network, and save them under the names of a checkpoint.

    Args:
        oracle: its layers are replaced by peft's.
        names: path in the checkpoint -> path in the oracle, for every layer that peft may see.
        config: peft's.
        folder: where peft saves.
    """
    tree = _tree({path: oracle.get_submodule(place) for path, place in names.items()})
    tuned = get_peft_model(tree, config)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in tuned.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * parameter.shape[-1] ** -0.5
    tuned.save_pretrained(folder, save_embedding_layers=False)
    for path, place in names.items():
        oracle.set_submodule(place, tree.get_submodule(path))
    oracle.eval()


def _tree(modules: Mapping[str, nn.Module]) -> nn.Module:
    root = nn.Module()
    for path, module in modules.items():
        *parents, leaf = path.split(".")
        node = root
        for name in parents:
            if name not in dict(node.named_children()):
                node.add_module(name, nn.Module())
            node = node.get_submodule(name)
        node.add_module(leaf, module)
    return root
