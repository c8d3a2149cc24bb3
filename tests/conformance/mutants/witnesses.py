"""Broken subjects for the checks of `diffulex_core.testing.checks.witnesses` and `.alignment`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from diffulex_core.context import BuildContext
from diffulex_core.distributed import ALONE
from diffulex_core.layers.decoder import Decoder
from diffulex_core.layers.linear import PackedLinear
from diffulex_core.layers.spec import DecoderSpec
from diffulex_core.plugin import ModelFamily
from diffulex_core.testing.checks import alignment, witnesses
from diffulex_core.weights import Rename, WeightRules
from tests.conformance.broken_families import BrokenFamily, decoder, family
from tests.conformance.broken_networks import OwnWindow
from tests.conformance.broken_resolvers import DropsAShard, TurnsSquares, relabelled
from tests.conformance.broken_strategies import HERE, engine, kit_family
from tests.conformance.mutant import Mutant

LLAMA = WeightRules(
    Rename("embed.weight", "model.embed_tokens.weight"),
    Rename("layers.{i}.{q,k,v}.weight", "model.layers.{i}.self_attn.{q,k,v}_proj.weight"),
    Rename("layers.{i}.out.weight", "model.layers.{i}.self_attn.o_proj.weight"),
    Rename("layers.{i}.{gate,up}.weight", "model.layers.{i}.mlp.{gate,up}_proj.weight"),
    Rename("layers.{i}.down.weight", "model.layers.{i}.mlp.down_proj.weight"),
    Rename("layers.{i}.attn_norm.weight", "model.layers.{i}.input_layernorm.weight"),
    Rename("layers.{i}.ff_norm.weight", "model.layers.{i}.post_attention_layernorm.weight"),
    Rename("norm.weight", "model.norm.weight"),
    Rename("head.weight", "lm_head.weight"),
)
"""From the names of the kit's family to those of Llama."""


def llama(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> LlamaForCausalLM:
    """The kit's network as transformers has it."""
    oracle = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config["vocab_size"],
            hidden_size=config["width"],
            intermediate_size=config["ffn"],
            num_hidden_layers=config["layers"],
            num_attention_heads=config["heads"],
            num_key_value_heads=config["kv_heads"],
            rms_norm_eps=1e-5,
            rope_parameters={"rope_type": "default", "rope_theta": config.get("rope_theta", 10000.0)},
        )
    )
    oracle.set_attn_implementation("eager")
    rules = [rule for rule in LLAMA.rules if isinstance(rule, Rename)]
    found = {name: next(filter(None, (rule.resolve(name) for rule in rules)))[0] for name in tensors}
    oracle.load_state_dict({found[name]: tensor for name, tensor in tensors.items()})
    return oracle.eval()


def with_oracle(**changes: Any) -> Callable[[], BrokenFamily]:
    """The kit's family beside Llama."""
    return lambda: family(**changes, hf_reference="tests.conformance:llama", parts={"tests.conformance:llama": llama})


class PairsHeadsOtherwise(Decoder):
    """Gives query heads to key/value heads in turn, not group by group."""

    def __init__(self, spec: DecoderSpec, ctx: BuildContext) -> None:
        super().__init__(spec, ctx)
        for layer in self.layers:
            layer.attn.qkv.register_forward_hook(_interleaved(spec))


def _interleaved(spec: DecoderSpec) -> Any:
    def other(qkv: PackedLinear, _arguments: object, packed: Tensor) -> Tensor:
        query, key, value = qkv.split(packed)
        heads = query.unflatten(-1, (spec.num_kv_heads, -1, spec.head_dim)).transpose(-3, -2)
        return torch.cat((heads.flatten(-3), key, value), dim=-1)

    return other


class DoesNotSum(Decoder):
    """Forgets the sum over the processes behind attention."""

    def __init__(self, spec: DecoderSpec, ctx: BuildContext) -> None:
        super().__init__(spec, ctx)
        for layer in self.layers:
            layer.attn.out.tp = ALONE


class SumsTwice(Decoder):
    def __init__(self, spec: DecoderSpec, ctx: BuildContext) -> None:
        super().__init__(spec, ctx)
        for layer in self.layers:
            layer.mlp.register_forward_hook(lambda module, given, out: ctx.tp.sum(out.clone()))


class ReplicatesTheWrongHead(Decoder):
    """With fewer key/value heads than processes, hands them out in turn instead of to neighbours."""

    def __init__(self, spec: DecoderSpec, ctx: BuildContext) -> None:
        super().__init__(spec, ctx)
        if ctx.tp.size <= spec.num_kv_heads:
            return
        start = ctx.tp.rank % spec.num_kv_heads * spec.head_dim
        for layer in self.layers:
            held = dict(layer.attn.qkv.held)
            layer.attn.qkv.held = held | {part: attrs.evolve(held[part], start=start) for part in ("k", "v")}


class WholeHead(Decoder):
    """Every process gives the logits of all ids."""

    def logits(self, hidden: Tensor) -> Tensor:
        return torch.cat([super().logits(hidden)] * self.ranks, dim=-1)


def shifted_family() -> ModelFamily:
    """The kit's family with logits that are shifted."""
    return attrs.evolve(
        kit_family(),
        name="shifted_family",
        architectures=("MutantForMaskedLM",),
        tiny=f"{HERE}broken_engines:TINY",
        logits="shifted",
    )


def _built(kind: type[Decoder]) -> Callable[[], BrokenFamily]:
    return lambda: family(build=decoder(kind))


MUTANTS: tuple[Mutant, ...] = (
    *(
        Mutant(name=name, check=witnesses.check_shares_agree, subject=_built(kind))
        for name, kind in {
            "the sum behind attention is missing": DoesNotSum,
            "the MLP is summed twice": SumsTwice,
            "a shard is dropped": DropsAShard,
            "key/value heads are replicated in turn": ReplicatesTheWrongHead,
            "every process gives all columns": WholeHead,
        }.items()
    ),
    *(
        Mutant(name=name, check=witnesses.check_logits_equal_the_reference, subject=subject)
        for name, subject in {
            "query heads read other key/value heads": with_oracle(build=decoder(PairsHeadsOtherwise)),
            "another rotary base": with_oracle(build=decoder(Decoder, rope_theta=5000.0)),
            "half of each head is rotated": with_oracle(build=decoder(Decoder, rope_fraction=0.5)),
            "the rotary base of config.json is not read": with_oracle(config={"rope_theta": 10000.0}),
            "another epsilon": with_oracle(build=decoder(Decoder, norm_eps=1e-2)),
            "a window that the published model does not have": with_oracle(build=decoder(OwnWindow)),
            "gate and up are swapped": with_oracle(weights=relabelled(shards={"gate": "up", "up": "gate"})),
            "square matrices are turned": with_oracle(weights=TurnsSquares()),
        }.items()
    ),
    Mutant(
        name="requests ask the row before",
        check=alignment.check_answers_are_read_from_the_predicting_rows,
        subject=lambda: engine(req="broken_requests:AsksOneRowBefore"),
    ),
    Mutant(
        name="requests do not heed that logits are shifted",
        check=alignment.check_answers_are_read_from_the_predicting_rows,
        subject=lambda: engine(req="broken_requests:IgnoresShift", family=shifted_family()),
    ),
)
