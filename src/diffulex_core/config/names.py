"""Which model family and which strategy: inferred from the checkpoint, or given and checked against it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import attrs

from diffulex_core.compat import missing_capabilities, require_compatible
from diffulex_core.config.convert import ConversionError, convert
from diffulex_core.config.keys import Origin
from diffulex_core.config.layers import Given
from diffulex_core.config.schema import Schema
from diffulex_core.config.settle import Report, Setting
from diffulex_core.descriptors import DecodingStrategy, ModelFamily
from diffulex_core.errors import IncompatibleError, PluginError, UnknownNameError
from diffulex_core.registry import Registry, not_loaded_text

if TYPE_CHECKING:
    from diffulex_core.host import Host

T = TypeVar("T", ModelFamily, DecodingStrategy)


@attrs.frozen(kw_only=True)
class Choice(Generic[T]):
    """A descriptor and who chose it; `problems` says why there is none, or why it will not do."""

    descriptor: T | None = None
    origin: Origin = Origin()
    problems: tuple[str, ...] = ()


def choose_family(
    given: str | None, origin: Origin, checkpoint: Mapping[str, Any] | None, host: Host
) -> Choice[ModelFamily]:
    """The family called `given`, or the one that the checkpoint's config.json names."""
    claimants = _claimants(checkpoint, host)
    if given is not None:
        choice = _look_up(host.models, given, "model_name", origin)
        family = choice.descriptor
        if family is None or not claimants or family in claimants:
            return choice
        text = (
            f"model_name is '{given}' ({origin}), but config.json belongs to {_names(claimants, host)} "
            f"({_identity(checkpoint)}). Leave model_name out, or give the checkpoint of '{family.name}'."
        )
        return attrs.evolve(choice, problems=(text,))
    match claimants:
        case [family]:
            return Choice(descriptor=family, origin=Origin(source="checkpoint", detail="config.json"))
        case []:
            return Choice(problems=(_nobody_claims(checkpoint, host),))
        case _:
            text = (
                f"Several model families claim this checkpoint ({_identity(checkpoint)}): {_names(claimants, host)}. "
                "Give model_name to choose one."
            )
            return Choice(problems=(text,))


def alias_settings(given: str | None, family: ModelFamily | None) -> tuple[str, Mapping[str, object]]:
    """The alias by which a person calls the family, and the keys that it settles."""
    if given is None or family is None:
        return "", {}
    return given, family.alias_settings.get(given, {})


def settle_by_alias(
    settings: dict[str, Setting], by_alias: Iterable[Given], family: ModelFamily, schema: Schema, report: Report
) -> None:
    """Set what the alias settles; a person who says otherwise is contradicted.

    Raises:
        PluginError: the family names a key or value that does not exist.
    """
    by_alias = tuple(by_alias)
    chosen = settings["decoding_strategy"].value
    # Keys of the strategy that belongs to the alias are unknown under another one, which is refused as it is.
    contradicted = any(given.name == "decoding_strategy" and given.value != chosen for given in by_alias)
    for given in by_alias:
        spec = schema.by_name.get(given.name)
        if spec is None and contradicted:
            continue
        if spec is None:
            raise PluginError(
                f"The model family '{family.name}' settles {given.name} for '{given.origin.detail}', which is no "
                "configuration key of it or of the strategy."
            )
        try:
            value = convert(given.value, spec.kind)
        except ConversionError as error:
            raise PluginError(
                f"The model family '{family.name}' settles {given.name} for '{given.origin.detail}' as "
                f"{given.value!r}: {error}."
            ) from error
        setting = settings[spec.name]
        if setting.value == value or spec.name in report.unusable:
            continue
        if setting.origin.by_user:
            report.problems.append(
                setting.problem(
                    f"the model '{given.origin.detail}' works with {value!r} only; leave {spec.name} out, or call the "
                    f"model '{family.name}'"
                )
            )
        settings[spec.name] = attrs.evolve(setting, value=value, origin=given.origin)


def choose_strategy(
    given: str | None, origin: Origin, family: ModelFamily | None, host: Host
) -> Choice[DecodingStrategy]:
    """The strategy called `given`, or the family's default."""
    if given is None and family is not None and family.default_strategy is not None:
        given, origin = family.default_strategy, Origin(source="family", detail=family.name)
    if given is not None:
        return _look_up(host.strategies, given, "decoding_strategy", origin)
    if family is None:
        return Choice()
    fitting = sorted(strategy.name for strategy in host.strategies if not missing_capabilities(family, strategy))
    text = (
        f"The model family '{family.name}' has no default strategy; give decoding_strategy, "
        f"one of {', '.join(fitting) or 'those of a plugin that you install'}."
    )
    return Choice(problems=(text,))


def misfits(family: ModelFamily, strategy: DecodingStrategy, host: Host) -> tuple[str, ...]:
    """Why the two do not fit; empty when they do."""
    try:
        require_compatible(family, strategy, strategies=host.strategies)
    except IncompatibleError as error:
        return error.problems
    return ()


def check_keys(strategy: DecodingStrategy, schema: Schema) -> None:
    """Refuse a strategy that is said not to read keys that do not exist, or whose modes are said to read such.

    Raises:
        PluginError: naming them.
    """
    if strange := sorted(strategy.unread - schema.by_name.keys()):
        raise PluginError(
            f"The strategy '{strategy.name}' names {', '.join(strange)} among the keys that it does not read, but "
            "there are no such configuration keys."
        )
    for name, mode in strategy.modes.items():
        if strange := sorted(mode.keys - schema.by_name.keys()):
            raise PluginError(
                f"The strategy '{strategy.name}' has a mode '{name}' with keys of its own, {', '.join(strange)}, which "
                "are no configuration keys of it."
            )


def apply_mode(
    strategy: DecodingStrategy, family: ModelFamily | None, mode: Setting, host: Host
) -> tuple[DecodingStrategy, tuple[str, ...]]:
    """The strategy's recipe under `sampling_mode`, and why that will not do."""
    name = mode.value
    if name == mode.spec.default:
        return strategy, ()
    if name not in strategy.modes:
        others = sorted(other.name for other in host.strategies if name in other.modes)
        has = ", ".join((str(mode.spec.default), *strategy.modes))
        advice = f", or choose decoding_strategy={' or '.join(map(repr, others))}" if others else ""
        known = f"the strategy '{strategy.name}' has no such mode; leave sampling_mode out, give one of {has}{advice}"
        return strategy, (mode.problem(known),)
    changed = strategy.in_mode(name)
    missing = (
        set() if family is None else missing_capabilities(family, changed) - missing_capabilities(family, strategy)
    )
    if family is None or not missing:
        return changed, ()
    lack = f"the model family '{family.name}' does not provide {', '.join(sorted(missing))}"
    return changed, (mode.problem(f"{lack}; use sampling_mode={mode.spec.default!r}, or a model that provides it"),)


def _look_up(registry: Registry[T], name: str, key: str, origin: Origin) -> Choice[T]:
    try:
        return Choice(descriptor=registry.get(name), origin=origin)
    except (UnknownNameError, PluginError) as error:
        return Choice(origin=origin, problems=(f"{key} is '{name}' ({origin}): {error}",))


def _claimants(checkpoint: Mapping[str, Any] | None, host: Host) -> list[ModelFamily]:
    if checkpoint is None:
        return []
    architectures = _architectures(checkpoint)
    named = [family for family in host.models if architectures.intersection(family.architectures)]
    return named or [family for family in host.models if checkpoint.get("model_type") in family.model_types]


def _architectures(checkpoint: Mapping[str, Any]) -> frozenset[str]:
    value = checkpoint.get("architectures")
    return frozenset(name for name in value if isinstance(name, str)) if isinstance(value, list) else frozenset()


def _nobody_claims(checkpoint: Mapping[str, Any] | None, host: Host) -> str:
    if checkpoint is None:
        lead = "There is no config.json to infer the model family from."
    else:
        lead = f"No model family claims this checkpoint ({_identity(checkpoint)})."
    known = "; ".join(
        f"{family.name} ({', '.join((*family.architectures, *family.model_types)) or 'by name only'})"
        for family in host.models
    )
    registered = f"Registered: {known}." if known else "No model family is registered."
    advice = "Give model_name, or install the plugin of its family."
    return f"{lead} {registered} {advice} {not_loaded_text(host.not_loaded)}".rstrip()


def _identity(checkpoint: Mapping[str, Any] | None) -> str:
    data = checkpoint or {}
    architectures = ", ".join(sorted(_architectures(data))) or "none"
    return f"architectures {architectures}; model_type {data.get('model_type') or 'none'}"


def _names(families: list[ModelFamily], host: Host) -> str:
    """The families and the distributions that bring them."""
    releases = {family.name: host.models.entry(family.name).provenance.release for family in families}
    return ", ".join(f"'{name}' ({release})" for name, release in releases.items())
