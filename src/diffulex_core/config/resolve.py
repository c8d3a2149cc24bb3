"""From what was given to a resolved configuration: pure, and every problem in one error."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import attrs

from diffulex_core.config.checks import check_together, check_values
from diffulex_core.config.convert import ConversionError, convert
from diffulex_core.config.derive import Checkpoint, derive, sampling_defaults
from diffulex_core.config.engine_config import EngineConfig
from diffulex_core.config.kernels import name_experts_kernel, name_layer_kernels
from diffulex_core.config.keys import Origin
from diffulex_core.config.layers import (
    ConfigFile,
    Given,
    from_defaults,
    from_generation_config,
    user_layers,
)
from diffulex_core.config.names import (
    alias_settings,
    apply_mode,
    check_keys,
    choose_family,
    choose_strategy,
    misfits,
    settle_by_alias,
)
from diffulex_core.config.schema import (
    FAMILY,
    STRATEGY,
    Schema,
    added_sizes,
    build_schema,
    core_sections,
    plugin_sections,
)
from diffulex_core.config.sections import CORE_SECTIONS, THRESHOLDS
from diffulex_core.config.settle import Report, Setting, given_text, settle
from diffulex_core.descriptors import DecodingStrategy, ModelFamily
from diffulex_core.errors import ConfigError, IncompatibleError, PluginError, UnknownNameError

if TYPE_CHECKING:
    from diffulex_core.host import Host


def resolve(
    model: str | None,
    options: Mapping[str, object] | None = None,
    *,
    host: Host,
    checkpoint: Mapping[str, Any] | None = None,
    generation_config: Mapping[str, Any] | None = None,
    tokenizer_mask_id: int | None = None,
    tokenizer_eos_ids: Iterable[int] = (),
    tokenizer_tokens: Mapping[str, int] | None = None,
    config_file: ConfigFile | None = None,
    environ: Mapping[str, str] | None = None,
    strict: bool = False,
    given_by: str = "the caller",
) -> EngineConfig:
    """Resolve a configuration. Pure: it reads no file and no environment, and loads no model.

    Precedence, low to high: default, model family, strategy, the checkpoint's generation_config.json, config file,
    environment, options. A key given as None is not given, unless None is a value of it.

    Args:
        model: name of the checkpoint; None = as config file, environment or options say.
        options: keys and values; values may be `Text`.
        host: the plugins.
        checkpoint: parsed config.json.
        generation_config: parsed generation_config.json.
        tokenizer_mask_id, tokenizer_eos_ids: what the tokenizer calls its mask token and its end tokens.
        tokenizer_tokens: ids of the tokenizer's added tokens, by their text.
        config_file: parsed config file, nested by section or flat.
        environ: variables; those named `DIFFULEX_<SECTION>__<KEY>` count.
        strict: an unknown option is a problem, not a warning. Unknown keys of a config file always are.
        given_by: what messages call the origin of the options.
    Raises:
        ConfigError: something is wrong; it lists everything. `IncompatibleError` where family and strategy do not fit.
        PluginError: a plugin broke a rule of configuration.
    """
    report = Report()
    facts = Checkpoint(
        config=checkpoint,
        generation=generation_config or {},
        tokenizer_mask_id=tokenizer_mask_id,
        tokenizer_eos_ids=tokenizer_eos_ids,
        tokenizer_tokens=tokenizer_tokens or {},
    )
    given = dict(options or {})
    if model is not None:
        given["model"] = model

    def by_user(schema: Schema) -> list[list[Given]]:
        return user_layers(schema, given, config_file=config_file, environ=environ, strict=strict, given_by=given_by)

    core = build_schema(core_sections())
    of_checkpoint, of_user = from_generation_config(facts.generation, core), by_user(core)
    layers = [of_checkpoint, *of_user]
    family_choice = choose_family(*given_text(layers, "model_name", core), checkpoint, host)
    family = family_choice.descriptor
    alias, settled = alias_settings(given_text(layers, "model_name", core)[0], family)
    by_alias = from_defaults(settled, Origin(source="family", detail=alias))
    strategy_choice = choose_strategy(
        *given_text([of_checkpoint, by_alias, *of_user], "decoding_strategy", core), family, host
    )
    strategy = strategy_choice.descriptor
    report.problems += (*family_choice.problems, *strategy_choice.problems)
    misfit = misfits(family, strategy, host) if family is not None and strategy is not None else ()
    report.problems += misfit

    classes = _option_classes(family, strategy, host)
    sizes = added_sizes([family] if family else [], [strategy] if strategy else [])
    schema = build_schema([*core_sections(), *plugin_sections(family, classes[0], strategy, classes[1])], sizes)
    layers = [
        from_defaults(family.defaults, Origin(source="family", detail=family.name)) if family else [],
        from_defaults(strategy.defaults, Origin(source="strategy", detail=strategy.name)) if strategy else [],
        from_generation_config(facts.generation, schema),
        *by_user(schema),
    ]
    # Without both descriptors it is not known which plugin keys exist, so unknown names are not judged.
    settings = settle(layers, schema, host if family is not None and strategy is not None else None, report)
    for name, descriptor, origin in (
        ("model_name", family, family_choice.origin),
        ("decoding_strategy", strategy, strategy_choice.origin),
    ):
        if descriptor is not None:
            settings[name] = attrs.evolve(settings[name], value=descriptor.name, origin=origin)
    if family is not None:
        settle_by_alias(settings, by_alias, family, schema, report)
    if strategy is not None:
        check_keys(strategy, schema)
        _force(settings, strategy, schema, report)
        mode = settings["sampling_mode"]
        strategy, in_mode = apply_mode(strategy, family, mode, host)
        report.problems += in_mode
        misfit += in_mode
    derive(settings, facts, family, strategy, report)
    _check_model(settings, report)
    _name_attention(settings, host, report)
    name_experts_kernel(settings, host, report)
    name_layer_kernels(settings, host, report)
    check_values(settings, report)
    check_together(settings, strategy.unread if strategy is not None else frozenset(), report)
    defaults = sampling_defaults(facts.generation, report)
    if family is None or strategy is None:
        raise ConfigError(report.problems)
    if not family_choice.problems:  # what another family's config.json lacks is no news
        report.problems += _ask_family(family, checkpoint, host)
    config = _build(settings, family, strategy, classes, defaults, report)
    if not report.unusable:
        report.problems += _ask_plugins(config, host)
    if report.problems:
        raise (IncompatibleError if misfit else ConfigError)(report.problems)
    return config


def _option_classes(
    family: ModelFamily | None, strategy: DecodingStrategy | None, host: Host
) -> tuple[type | None, type | None]:
    of_family = of_strategy = None
    if family is not None and family.config_cls is not None:
        of_family = host.load(family.config_cls, provenance=host.models.entry(family.name).provenance)
    if strategy is not None and strategy.config_cls is not None:
        of_strategy = host.load(strategy.config_cls, provenance=host.strategies.entry(strategy.name).provenance)
    return of_family, of_strategy


def _force(settings: dict[str, Setting], strategy: DecodingStrategy, schema: Schema, report: Report) -> None:
    for name, wanted in strategy.forces.items():
        spec = schema.by_name.get(name)
        if spec is None:
            raise PluginError(f"The strategy '{strategy.name}' forces {name}, which is no configuration key.")
        try:
            value = convert(wanted, spec.kind)
        except ConversionError as error:
            raise PluginError(f"The strategy '{strategy.name}' forces {name} to {wanted!r}: {error}.") from error
        setting = settings[spec.name]
        if setting.value == value:
            continue
        if setting.origin.by_user:
            report.warn(
                f"{spec.name} is {setting.value!r} ({setting.origin}), but the strategy '{strategy.name}' "
                f"works with {value!r} only; {value!r} is used."
            )
        origin = Origin(source="strategy", detail=strategy.name)
        settings[spec.name] = attrs.evolve(setting, value=value, origin=origin)


def _check_model(settings: Mapping[str, Setting], report: Report) -> None:
    if not settings["model"].value and "model" not in report.unusable:
        report.problems.append(
            settings["model"].problem("name a checkpoint: a directory, or a name such as tiny/llada")
        )


def _name_attention(settings: dict[str, Setting], host: Host, report: Report) -> None:
    setting = settings["attn_impl"]
    if setting.value == "auto" or "attn_impl" in report.unusable:
        return
    try:
        settings["attn_impl"] = attrs.evolve(setting, value=host.attention.get(setting.value).name)
    except (UnknownNameError, PluginError) as error:
        report.problems.append(setting.problem(str(error).rstrip(".")))


def _ask_family(family: ModelFamily, checkpoint: Mapping[str, Any] | None, host: Host) -> list[str]:
    if family.check_config is None or checkpoint is None:
        return []
    provenance = host.models.entry(family.name).provenance
    check = host.load(family.check_config, provenance=provenance)
    lead = f"config.json does not suit the model family '{family.name}' ({provenance.release})"
    return [f"{lead}: {text}" for text in check(dict(checkpoint))]


def _ask_plugins(config: EngineConfig, host: Host) -> list[str]:
    problems = []
    for provenance, validate in host.callers("diffulex_validate_config"):
        try:
            answers = validate(config=config)
        except Exception as error:
            raise PluginError(
                f"The plugin {provenance} failed while it checked the configuration: {type(error).__name__}: {error}"
            ) from error
        problems += [text for answer in answers for text in answer]
    return problems


def _build(
    settings: Mapping[str, Setting],
    family: ModelFamily,
    strategy: DecodingStrategy,
    classes: tuple[type | None, type | None],
    defaults: Mapping[str, Any],
    report: Report,
) -> EngineConfig:
    parts = {name: _fill(cls, name, settings) for name, cls in CORE_SECTIONS}
    family_options = None if classes[0] is None else _fill(classes[0], FAMILY, settings)
    strategy_options = family_options
    if classes[1] is not classes[0]:
        strategy_options = None if classes[1] is None else _fill(classes[1], STRATEGY, settings)
    idle_keys = strategy.unread_in(settings["sampling_mode"].value).union(THRESHOLDS) - strategy.thresholds
    unused = tuple(name for name in settings if name in idle_keys)
    given = [settings[name] for name in unused if settings[name].origin.by_user]
    idle = [setting.spec.name for setting in given if setting.value != setting.spec.default]
    if idle:
        report.warn(f"{_reader(strategy, settings)} does not use {', '.join(idle)}; the values given change nothing.")
    return EngineConfig(
        **parts,
        family=family,
        strategy=strategy,
        family_options=family_options,
        strategy_options=strategy_options,
        sampling_defaults=defaults,
        origins={name: setting.origin for name, setting in settings.items()},
        warnings=tuple(report.warnings),
        unused=unused,
    )


def _reader(strategy: DecodingStrategy, settings: Mapping[str, Setting]) -> str:
    """The strategy, with its mode where it has several."""
    mode = f" in sampling_mode={settings['sampling_mode'].value!r}" if strategy.modes else ""
    return f"The strategy '{strategy.name}'{mode}"


def _fill(cls: type, section: str, settings: Mapping[str, Setting]) -> Any:
    """An instance of a section class, groups included."""
    values: dict[str, Any] = {}
    groups: dict[str, dict[str, Any]] = {}
    for setting in settings.values():
        if setting.spec.section != section:
            continue
        match setting.spec.path:
            case (name,):
                values[name] = setting.value
            case (group, name):
                groups.setdefault(group, {})[name] = setting.value
    default = cls()
    for group, leaves in groups.items():
        values[group] = attrs.evolve(operator.attrgetter(group)(default), **leaves)
    return cls(**values)
