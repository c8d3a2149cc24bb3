"""What plugins register: frozen values that name code as `"package.module:attribute"`.

The reference is loaded once, when an engine needs it. Importing this module imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import attrs
import pluggy
from frozendict import frozendict

from diffulex_core.req_context import ForceRule
from diffulex_core.sampling_params import DecodingThresholds, SamplingParams

hookimpl = pluggy.HookimplMarker("diffulex")
"""Marks a function of a plugin module as an implementation of the hook whose name it has."""


class Capability:
    """Names that families provide and strategies require. Plugins may use others of their own."""

    MASK_TOKEN = "mask_token"
    """The family marks undecided positions with a mask token."""
    BLOCK_CAUSAL = "block_causal"
    """The network may be run under a block-causal mask."""
    FULL_PREFIX = "full_prefix"
    """The network may be run under the full-prefix mask of d2f."""
    FULL_ATTENTION = "full_attention"
    """The network may be run with every position seeing every other (fixed-length canvas generation)."""
    EDIT = "edit"
    """The network was trained to revise decided tokens (edit sampling)."""
    ALIGNED_LOGITS = "aligned_logits"
    """Row i of the logits predicts position i. Follows from the family's `logits`; it need not be listed.

    Strategies require it whose requests do not heed `ReqContext.shifted`.
    """
    SHIFTED_LOGITS = "shifted_logits"
    """Row i of the logits predicts position i + 1. Follows from the family's `logits`; it need not be listed."""
    SOFT_INPUTS = "soft_inputs"
    """The network accepts blended embeddings in place of token ids (token merge)."""
    SELF_CONDITIONING = "self_conditioning"
    """Rows that are not final read, beside their token, what the step before believed (`SelfConditioned`)."""


ComponentKind = Literal[
    "scheduler", "kv_cache", "cache_policy", "runner", "sampler", "executor", "model_source", "kernel", "layer_kernels"
]
"""The registries of components."""


def _reference(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    """attrs validator: `"package.module:attribute"`, or None where that is the default."""
    if value is None and attribute.default is None:
        return
    module, separator, name = (value or "").partition(":")
    if not separator or not name.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
        raise ValueError(f"{attribute.name}={value!r} is not a reference of the form 'package.module:attribute'")


def _sizes(instance: object, attribute: attrs.Attribute[Any], value: tuple[int, ...]) -> None:
    """attrs validator: whole numbers of at least 1."""
    if not isinstance(value, tuple) or not all(type(size) is int and size > 0 for size in value):
        raise ValueError(f"{attribute.name}={value!r} is not a tuple of whole numbers of at least 1")


def _references(instance: object, attribute: attrs.Attribute[Any], value: Mapping[str, str]) -> None:
    """attrs validator: a mapping whose values are references."""
    for reference in value.values():
        _reference(instance, attribute, reference or "")


def _names(value: Iterable[str]) -> frozenset[str]:
    if isinstance(value, str):
        raise ValueError(f"{value!r} is one text where names are wanted; give a set, as in {{{value!r}}}")
    return frozenset(value)


def _thresholds(instance: object, attribute: attrs.Attribute[Any], value: frozenset[str]) -> None:
    """attrs validator: names of decoding thresholds."""
    known = [field.name for field in attrs.fields(DecodingThresholds)]
    if strange := sorted(value - set(known)):
        raise ValueError(f"{attribute.name} holds {', '.join(strange)}; the thresholds are {', '.join(known)}")


def _frozen_mapping(value: Mapping[str, object]) -> Mapping[str, object]:
    return frozendict(value)


def _frozen_texts(value: Mapping[str, str]) -> Mapping[str, str]:
    return frozendict(value)


def _frozen_tables(value: Mapping[str, Mapping[str, object]]) -> Mapping[str, Mapping[str, object]]:
    if not isinstance(value, Mapping) or not all(isinstance(entries, Mapping) for entries in value.values()):
        raise ValueError(f"{value!r} is not a dict of dicts, as in {{'name': {{'key': 1}}}}")
    return frozendict({name: frozendict(entries) for name, entries in value.items()})


def _of_aliases(
    instance: ModelFamily, attribute: attrs.Attribute[Any], value: Mapping[str, Mapping[str, object]]
) -> None:
    """attrs validator: a mapping whose names are the family's aliases."""
    if strange := sorted(value.keys() - set(instance.aliases)):
        raise ValueError(f"{attribute.name} has settings for {', '.join(strange)}, not among the aliases")


@attrs.frozen(kw_only=True)
class SamplerTraits:
    """How a family's logits are read; honoured by the shared sampler.

    Attributes:
        force_rule: when a block decides one token although none is confident enough.
    """

    force_rule: ForceRule = "after_semi_complete"


@attrs.frozen(kw_only=True)
class ModelFamily:
    """A network architecture and everything needed to load and run its checkpoints.

    Attributes:
        name: the public `model_name`.
        build: reference to `build(config: dict, ctx: BuildContext) -> DiffusionModel`; `config` is the parsed
            config.json.
        weights: reference to a `WeightResolver` (usually a `WeightRules` table).
        aliases: other names for the same family.
        alias_settings: configuration keys that an alias settles, by alias: what it says about a checkpoint and
            config.json does not. They are set unless given, and another value is refused.
        architectures, model_types: values of config.json that this family claims.
        provides: capabilities (`Capability`).
        logits: "aligned" when row i predicts position i, "shifted" when it predicts position i + 1.
        sampler: sampler traits.
        default_strategy: strategy used when the user names none.
        defaults: configuration keys that this family sets unless the checkpoint or the user does.
        mask_token: text of the mask token in the published tokenizers. It finds the id where nothing names one, and an
            id that means another token is a problem.
        stop_tokens: texts of tokens that end an answer beside those that the checkpoint names, where its tokenizer has
            them.
        tokenizer_classes: tokenizer classes that checkpoints bring as code, and references to classes that read the
            same files.
        sizes: values of block_size and page_size that it allows besides those that all families do.
        config_cls: reference to a frozen attrs class with the family's own configuration keys.
        check_config: reference to `check(config: dict) -> list[str]`: problems of a config.json, without torch.
        tiny: reference to a small config.json dict for tests.
        hf_reference: reference to a function that builds the family's oracle from transformers.
    """

    name: str
    build: str = attrs.field(validator=_reference)
    weights: str = attrs.field(validator=_reference)
    aliases: tuple[str, ...] = ()
    alias_settings: Mapping[str, Mapping[str, object]] = attrs.field(
        factory=dict, converter=_frozen_tables, validator=_of_aliases, hash=False
    )
    architectures: tuple[str, ...] = ()
    model_types: tuple[str, ...] = ()
    provides: frozenset[str] = attrs.field(default=frozenset(), converter=_names)
    logits: Literal["aligned", "shifted"] = "aligned"
    sampler: SamplerTraits = SamplerTraits()
    default_strategy: str | None = None
    defaults: Mapping[str, object] = attrs.field(factory=dict, converter=_frozen_mapping, hash=False)
    mask_token: str | None = None
    stop_tokens: tuple[str, ...] = ()
    tokenizer_classes: Mapping[str, str] = attrs.field(
        factory=dict, converter=_frozen_texts, validator=_references, hash=False
    )
    sizes: tuple[int, ...] = attrs.field(default=(), validator=_sizes)
    config_cls: str | None = attrs.field(default=None, validator=_reference)
    check_config: str | None = attrs.field(default=None, validator=_reference)
    tiny: str | None = attrs.field(default=None, validator=_reference)
    hf_reference: str | None = attrs.field(default=None, validator=_reference)


@attrs.frozen(kw_only=True)
class SamplingMode:
    """What a `sampling_mode` other than "naive" changes in a strategy's recipe.

    Attributes:
        req: reference to a `ReqFactory`; None = the strategy's own.
        sampler: name of a registered component; None = the strategy's own.
        requires: capabilities that the family must provide besides those that the strategy requires.
        thresholds: names of further decoding thresholds that change its behaviour.
        ignores: names of those among the strategy's thresholds that do not.
        keys: names of the strategy's own configuration keys that change nothing in other modes.
    """

    req: str | None = attrs.field(default=None, validator=_reference)
    sampler: str | None = None
    requires: frozenset[str] = attrs.field(default=frozenset(), converter=_names)
    thresholds: frozenset[str] = attrs.field(default=frozenset(), converter=_names, validator=_thresholds)
    ignores: frozenset[str] = attrs.field(default=frozenset(), converter=_names, validator=_thresholds)
    keys: frozenset[str] = attrs.field(default=frozenset(), converter=_names)


def _frozen_modes(value: Mapping[str, SamplingMode]) -> Mapping[str, SamplingMode]:
    return frozendict(value)


def _modes(instance: object, attribute: attrs.Attribute[Any], value: Mapping[str, SamplingMode]) -> None:
    """attrs validator: modes by the name that `sampling_mode` gives them."""
    for name, mode in value.items():
        _word("mode", name)
        if name == "naive":
            raise ValueError("the mode 'naive' is the strategy as it is; give another name")
        if not isinstance(mode, SamplingMode):
            raise ValueError(f"the mode {name!r} is {mode!r}; give a SamplingMode")


def _word(kind: str, name: object) -> None:
    if not isinstance(name, str) or name.split() != [name]:
        raise ValueError(f"a {kind} is called {name!r}; a name is text without white space")


def _presets(instance: object, attribute: attrs.Attribute[Any], value: Mapping[str, Mapping[str, object]]) -> None:
    """attrs validator: a mapping whose values are arguments of `SamplingParams`."""
    known = {field.name for field in attrs.fields(SamplingParams)}
    for name, settings in value.items():
        _word("preset", name)
        if unknown := sorted(settings.keys() - known):
            raise ValueError(
                f"the preset {name!r} sets {', '.join(unknown)}, which no request has. Presets hold arguments of "
                f"SamplingParams ({', '.join(sorted(known))}); a decoding threshold stands among its `thresholds`, and "
                "configuration keys are set by the strategy's `defaults`"
            )
        arguments: dict[str, Any] = dict(settings)
        SamplingParams(**arguments)


@attrs.frozen(kw_only=True)
class DecodingStrategy:
    """A recipe for decoding: it names only what differs from the engine's defaults.

    Attributes:
        name: the public `decoding_strategy`.
        pattern: reference to `pattern(block_size: int) -> AttentionPattern`.
        sub_blocks: the pattern's blocks are whole buffers, of block_size x buffer_size tokens, and block_size is a part
            of one.
        req: reference to a `ReqFactory`; None = the block-buffer request.
        scheduler, kv_cache, runner, sampler: names of registered components; None = the engine's own.
        aliases: other names.
        requires: capabilities that the family must provide.
        thresholds: names of the decoding thresholds that change its behaviour.
        defaults: configuration keys that this strategy sets unless the checkpoint or the user does.
        forces: configuration keys that it normalises to one value, with a warning when the user asked for another.
        unread: names of the core's configuration keys that change nothing in its answers, besides thresholds.
        sizes: values of block_size and page_size that it allows besides those that all strategies do.
        config_cls: reference to a frozen attrs class with the strategy's own configuration keys; its requests find the
            instance in `ReqContext.options`.
        modes: the values of `sampling_mode` that it knows besides "naive", and what they change.
        presets: arguments of `SamplingParams` that go well together, by a name that users ask for.
        logprobs: its sampler tells the log probabilities that requests ask for, as the engine's own does.
    """

    name: str
    pattern: str = attrs.field(validator=_reference)
    sub_blocks: bool = False
    req: str | None = attrs.field(default=None, validator=_reference)
    scheduler: str | None = None
    kv_cache: str | None = None
    runner: str | None = None
    sampler: str | None = None
    aliases: tuple[str, ...] = ()
    requires: frozenset[str] = attrs.field(default=frozenset(), converter=_names)
    thresholds: frozenset[str] = attrs.field(default=frozenset(), converter=_names, validator=_thresholds)
    defaults: Mapping[str, object] = attrs.field(factory=dict, converter=_frozen_mapping, hash=False)
    forces: Mapping[str, object] = attrs.field(factory=dict, converter=_frozen_mapping, hash=False)
    unread: frozenset[str] = attrs.field(default=frozenset(), converter=_names)
    sizes: tuple[int, ...] = attrs.field(default=(), validator=_sizes)
    config_cls: str | None = attrs.field(default=None, validator=_reference)
    modes: Mapping[str, SamplingMode] = attrs.field(factory=dict, converter=_frozen_modes, validator=_modes, hash=False)
    presets: Mapping[str, Mapping[str, object]] = attrs.field(
        factory=dict, converter=_frozen_tables, validator=_presets, hash=False
    )
    logprobs: bool = True

    def unread_in(self, mode: str) -> frozenset[str]:
        """Keys, thresholds aside, that change nothing in a mode: nobody reads them, or only other modes do."""
        others = frozenset[str]().union(*(each.keys for other, each in self.modes.items() if other != mode))
        return self.unread | (others - (self.modes[mode].keys if mode in self.modes else frozenset()))

    def in_mode(self, name: str) -> DecodingStrategy:
        """The recipe with a mode's changes; itself for a mode that it does not know, such as "naive"."""
        mode = self.modes.get(name)
        if mode is None:
            return self
        return attrs.evolve(
            self,
            req=mode.req or self.req,
            sampler=mode.sampler or self.sampler,
            requires=self.requires | mode.requires,
            thresholds=(self.thresholds - mode.ignores) | mode.thresholds,
        )


@attrs.frozen(kw_only=True)
class AttentionBackendPlugin:
    """An attention implementation that can be chosen with `attn_impl`.

    Attributes:
        name: the public name.
        impl: reference to a class without arguments that satisfies `AttentionBackend`.
        probe: reference to `probe(case: AttentionCase) -> list[str]`: the reasons it cannot serve, empty when it can.
        aliases: other names.
        priority: `attn_impl="auto"` takes the highest priority whose probe gives no reason.
    """

    name: str
    impl: str = attrs.field(validator=_reference)
    probe: str = attrs.field(validator=_reference)
    aliases: tuple[str, ...] = ()
    priority: int = 0


@attrs.frozen(kw_only=True)
class Component:
    """A part that configuration chooses by name.

    Attributes:
        kind: which registry it joins.
        name: its name there.
        factory: reference to the code; its signature is that of the kind (see docs/plugin-api.md).
        aliases: other names.
    """

    kind: ComponentKind
    name: str
    factory: str = attrs.field(validator=_reference)
    aliases: tuple[str, ...] = ()
