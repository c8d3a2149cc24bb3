"""Declarative weight rules: which checkpoint names go to which parameters.

Patterns match whole names. `{i}` (any single word) is a whole number, `{q,k,v}` is one of the listed words; where a
variable stands again on the other side it takes the same value. `*` in a `Skip` is any text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import attrs

from diffulex_core.errors import PluginError
from diffulex_core.weights.types import LoadContext, ResolvedWeight, ShardId

_VARIABLE = re.compile(r"\{([^{}]*)\}")


def _braced(variables: Iterable[str]) -> str:
    return " and ".join(f"{{{each}}}" for each in sorted(variables)) or "none"


@attrs.frozen
class NamePattern:
    """A name with variables.

    Attributes:
        text: the pattern as written.
        variables: its distinct variables without braces, in order of appearance.
    """

    text: str
    variables: tuple[str, ...] = attrs.field(init=False)
    _regex: re.Pattern[str] = attrs.field(init=False, repr=False, eq=False)

    @variables.default
    def _find_variables(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(_VARIABLE.findall(self.text)))

    @_regex.default
    def _compile(self) -> re.Pattern[str]:
        pieces, seen = [], list[str]()
        for index, piece in enumerate(_VARIABLE.split(self.text)):
            if index % 2 == 0:
                pieces.append(re.escape(piece).replace(r"\*", ".*"))
            elif piece in seen:
                pieces.append(f"(?P=p{seen.index(piece)})")
            else:
                pieces.append(f"(?P<p{len(seen)}>{_alternatives(piece)})")
                seen.append(piece)
        return re.compile("".join(pieces))

    def match(self, name: str) -> Mapping[str, str] | None:
        """The value of each variable, or None when the name does not fit."""
        found = self._regex.fullmatch(name)
        return None if found is None else dict(zip(self.variables, found.groups(), strict=True))

    def fill(self, values: Mapping[str, str]) -> str:
        """The name with every variable replaced."""
        return _VARIABLE.sub(lambda found: values[found[1]], self.text)


def _alternatives(variable: str) -> str:
    words = variable.split(",")
    if len(words) > 1 and all(words):
        return "|".join(re.escape(word) for word in words)
    if variable.isidentifier():
        return "0|[1-9][0-9]*"
    raise PluginError(f"{{{variable}}} is no variable; write {{i}} for a number, {{a,b}} for one of two words.")


@attrs.frozen
class Rename:
    """One checkpoint tensor goes to one parameter or buffer, or to one shard of it.

    Attributes:
        source: pattern of the checkpoint name.
        target: the model's name; may use the variables of `source`.
        shard: part of a packed target; may be a variable of `source`.
    """

    source: str
    target: str
    shard: str | None = attrs.field(default=None, kw_only=True)
    _source: NamePattern = attrs.field(init=False, repr=False, eq=False)
    _target: NamePattern = attrs.field(init=False, repr=False, eq=False)
    _shard: NamePattern | None = attrs.field(init=False, repr=False, eq=False)

    @_source.default
    def _source_pattern(self) -> NamePattern:
        return NamePattern(self.source)

    @_target.default
    def _target_pattern(self) -> NamePattern:
        return NamePattern(self.target)

    @_shard.default
    def _shard_pattern(self) -> NamePattern | None:
        return None if self.shard is None else NamePattern(self.shard)

    def __attrs_post_init__(self) -> None:
        used = {*self._target.variables, *(self._shard.variables if self._shard else ())}
        if used != set(self._source.variables):
            raise PluginError(
                f"Rename({self.source!r}, {self.target!r}, shard={self.shard!r}): the source must use the same"
                f" variables as target and shard together. It has {_braced(self._source.variables)}, they"
                f" have {_braced(used)}; words that differ between the sides take a rule each."
            )
        if "*" in self.source + self.target:
            raise PluginError(f"Rename({self.source!r}, {self.target!r}): '*' is for Skip only.")

    def resolve(self, name: str) -> tuple[str, str | None] | None:
        """Target and shard of a checkpoint name, or None when the rule does not apply."""
        values = self._source.match(name)
        if values is None:
            return None
        return self._target.fill(values), None if self._shard is None else self._shard.fill(values)

    def source_of(self, target: str, shard: ShardId | None) -> str | None:
        """The checkpoint name that goes to this target and shard, or None when the rule does not lead there."""
        values = self._target.match(target)
        if values is None or (self._shard is None) != (shard is None):
            return None
        named = self._shard.match(str(shard)) if self._shard is not None else {}
        if named is None or any(values.get(key, value) != value for key, value in named.items()):
            return None
        return self._source.fill({**values, **named})


@attrs.frozen
class Skip:
    """Checkpoint tensors that are left out on purpose.

    Attributes:
        pattern: of the checkpoint name; `*` is any text.
        reason: why, in words.
    """

    pattern: str
    reason: str = attrs.field(validator=attrs.validators.min_len(1))
    _pattern: NamePattern = attrs.field(init=False, repr=False, eq=False)

    @_pattern.default
    def _name_pattern(self) -> NamePattern:
        return NamePattern(self.pattern)

    def matches(self, name: str) -> bool:
        """Whether the rule covers a checkpoint name."""
        return self._pattern.match(name) is not None


@attrs.frozen
class Stray:
    """Checkpoint tensors that belong to another network, where no other rule finds a place for them.

    Attributes:
        pattern: of the checkpoint name; `*` is any text.
        meaning: what their presence says, a sentence without full stop; it joins the message that refuses them.
    """

    pattern: str
    meaning: str = attrs.field(validator=attrs.validators.min_len(1))
    _pattern: NamePattern = attrs.field(init=False, repr=False, eq=False)

    @_pattern.default
    def _name_pattern(self) -> NamePattern:
        return NamePattern(self.pattern)

    def matches(self, name: str) -> bool:
        """Whether the rule covers a checkpoint name."""
        return self._pattern.match(name) is not None


@attrs.frozen(init=False)
class WeightRules:
    """A table of rules; a `WeightResolver`.

    The order of the rules does not matter: a name may match only one `Rename` or `Skip`.
    """

    rules: tuple[Rename | Skip | Stray, ...]

    def __init__(self, *rules: Rename | Skip | Stray) -> None:
        self.__attrs_init__(rules)

    def resolve_checkpoint_weight(self, name: str, ctx: LoadContext) -> ResolvedWeight | None:
        """See `WeightResolver`. A rule whose target the model does not have gives None.

        Raises:
            PluginError: two rules match.
        """
        skips = [rule for rule in self.rules if isinstance(rule, Skip) and rule.matches(name)]
        renames = [found for rule in self.rules if isinstance(rule, Rename) and (found := rule.resolve(name))]
        if len(skips) + len(renames) > 1:
            raise PluginError(f"Several weight rules match the checkpoint tensor {name!r}: make the patterns distinct.")
        if skips:
            return ResolvedWeight(skip=skips[0].reason)
        for target, shard in renames:
            if target in ctx.parameters:
                return ResolvedWeight(param=ctx.parameters[target], shard_id=shard)
            if target in ctx.buffers:
                return ResolvedWeight(buffer=ctx.buffers[target], shard_id=shard)
        return None

    def explain(self, name: str) -> str:
        """See `ExplainsStrays`."""
        return next((rule.meaning for rule in self.rules if isinstance(rule, Stray) and rule.matches(name)), "")

    def sources(self, target: str, shard_id: ShardId | None) -> Sequence[str]:
        """See `NamesSources`."""
        found = (rule.source_of(target, shard_id) for rule in self.rules if isinstance(rule, Rename))
        return [source for source in found if source is not None]
