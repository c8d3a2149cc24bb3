"""Which layers an adapter is for: peft's rules for module names, applied to the checkpoint's."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

import attrs

ALL_LINEAR = "all-linear"


@attrs.frozen(kw_only=True)
class Selection:
    """What a rule picks.

    Attributes:
        paths: the layers that carry the adapter.
        problems: parts of the rule that pick nothing, one sentence each.
    """

    paths: frozenset[str]
    problems: tuple[str, ...]


@attrs.frozen(kw_only=True)
class TargetRule:
    """The keys of adapter_config.json that name layers.

    Attributes:
        modules: names (a layer's whole path or its last components), a regular expression for the whole path,
            "all-linear" for every linear layer but the head, or None for the layers that the adapter holds tensors of.
            An expression that fits no path is taken as a name.
        exclude: names or a regular expression, as above, of layers that are left out.
        layers: numbers of the decoder layers that carry the adapter; empty = all.
        layers_pattern: names before a layer's number; empty = any.
    """

    modules: tuple[str, ...] | str | None
    exclude: tuple[str, ...] | str = ()
    layers: tuple[int, ...] = ()
    layers_pattern: tuple[str, ...] = ()

    def select(self, paths: Collection[str], *, linear: Collection[str], held: Collection[str]) -> Selection:
        """Apply the rule.

        Args:
            paths: all layers that can be named.
            linear: those that "all-linear" stands for.
            held: layers that the adapter holds tensors of.
        """
        problems: list[str] = []
        chosen = self._named(paths, linear, held, problems)
        kept = {path for path in chosen if not _matches(self.exclude, path)}
        return Selection(paths=frozenset(kept), problems=tuple(problems))

    def _named(
        self, paths: Collection[str], linear: Collection[str], held: Collection[str], problems: list[str]
    ) -> Iterable[str]:
        if self.modules is None:
            return held
        if isinstance(self.modules, str):
            if self.modules.lower() == ALL_LINEAR:
                return linear
            found = {path for path in paths if re.fullmatch(self.modules, path)}
            if found:
                return found
        names = (self.modules,) if isinstance(self.modules, str) else self.modules
        problems += [
            f"target_modules names {name!r}, but no linear layer of the checkpoint is called so."
            for name in names
            if not any(_is_called(path, name) for path in paths)
        ]
        named = {path for path in paths if any(_is_called(path, name) for name in names)}
        if not self.layers:
            return named
        numbers = {path: self._layer_number(path) for path in named}
        problems += [
            f"layers_to_transform names layer {layer}, but no target lies there."
            for layer in sorted(set(self.layers).difference(numbers.values()))
        ]
        # A layer named by its whole path is a target whatever its number.
        return {path for path in named if path in names or numbers[path] in self.layers}

    def _layer_number(self, path: str) -> int | None:
        before = [rf"(?:^|.*?\.){pattern}" for pattern in self.layers_pattern] or [r".*?\.[^.]*"]
        found = next((found for each in before if (found := re.match(rf"{each}\.(?P<number>\d+)\.", path))), None)
        return None if found is None else int(found["number"])


def _matches(rule: tuple[str, ...] | str, path: str) -> bool:
    if isinstance(rule, str):
        return re.fullmatch(rule, path) is not None
    return any(_is_called(path, name) for name in rule)


def _is_called(path: str, name: str) -> bool:
    return path == name or path.endswith(f".{name}")
