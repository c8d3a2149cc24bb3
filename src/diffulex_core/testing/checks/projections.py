"""Checks that weights do what their checkpoint names say: rules that agree with each other may still be wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import attrs
import torch
from torch import Tensor

from diffulex_core.protocols import DiffusionModel
from diffulex_core.testing.check import AnyCheck, CheckFailed, check
from diffulex_core.testing.effort import Effort
from diffulex_core.testing.forward import Fed, Memory, Spy, hidden_rows
from diffulex_core.testing.layouts import Layout, drawn, layouts, parts_of, unknown_names
from diffulex_core.testing.roles import Siblings, gates, heads
from diffulex_core.testing.sequences import PAGE, pages_for
from diffulex_core.testing.stored import folder_of, load
from diffulex_core.testing.subjects import FamilySubject
from diffulex_core.weights import Part, ShardId
from diffulex_core.weights.resolve import Resolution

TOKENS = 6
FACTORS = (0.5, 3.0, -0.5, -1.0)
"""What a tensor of an MLP is multiplied with, to see how the answer follows."""


@attrs.frozen(kw_only=True, eq=False)
class Loaded:
    """A network that was loaded from random tensors, as engines load it.

    Attributes:
        network: the network.
        layout: the names and places of its tensors.
        tensors: by name.
        resolution: who knows what becomes of a tensor.
        parts: where each place is.
    """

    network: DiffusionModel
    layout: Layout
    tensors: Mapping[str, Tensor]
    resolution: Resolution
    parts: Mapping[tuple[tuple[str, ...], ShardId | None], Part]

    @classmethod
    def of(cls, subject: FamilySubject, layout: Layout) -> Loaded:
        """One of a family."""
        tensors = drawn(layout)
        with folder_of(tensors) as folder:
            module, _ = load(subject, folder)
        if not isinstance(module, DiffusionModel):
            raise CheckFailed(f"{subject.family.build!r} builds a {type(module).__name__}, which is no DiffusionModel.")
        resolution = Resolution.of(module, subject.resolver, subject.config, torch.float32)
        return cls(network=module, layout=layout, tensors=tensors, resolution=resolution, parts=parts_of(module))

    @contextmanager
    def changed(self, name: str, tensor: Tensor) -> Iterator[None]:
        """The network with another tensor under one name."""
        self._put(name, tensor)
        try:
            yield
        finally:
            self._put(name, self.tensors[name])

    def _put(self, name: str, tensor: Tensor) -> None:
        resolved, place = self.resolution(name), self.layout.places[name]
        assert resolved is not None, "the layout's names have places"
        with torch.no_grad():
            made = tensor if resolved.transform is None else resolved.transform(tensor)
            if resolved.loader is not None:
                resolved.loader(made)
            else:
                self.parts[place.names, place.shard].view.copy_(made)

    def look(self, *, closely: bool = False) -> tuple[list[Mapping[str, Tensor]], Tensor]:
        """What each layer hands to attention for a few rows, and their hidden rows at the end.

        "key" and "value" of each layer, and, looked at closely, "query" too, where the network uses the backend.
        """
        network = self.network
        memory = Memory.of(network, pages_for(TOKENS), PAGE)
        spy = Spy(memory) if closely else None
        ids = [(7 * at + 3) % network.vocab_size for at in range(TOKENS)]
        fed = Fed(tokens=ids, ends=[TOKENS] * TOKENS, table=range(pages_for(TOKENS)))
        hidden = hidden_rows(network, memory, fed, backend=spy, multiple=1)
        queries = dict[int, dict[str, Tensor]]()
        for call in spy.calls if spy else ():
            # Of layers that read one another's K/V the first is the one that stores them.
            queries.setdefault(call.layer, {"query": call.query})
        handed = list[Mapping[str, Tensor]]()
        for layer in range(len(network.kv_geometry)):
            keys, values = (part[:TOKENS] for part in memory.flat(layer))
            handed.append({**queries.get(layer, {}), "key": keys, "value": values})
        return handed, hidden


@check(FamilySubject, when=unknown_names)
def check_projections_are_what_they_are_called(subject: FamilySubject, effort: Effort) -> None:
    """A tensor that its name calls a query's changes the queries of its layer alone; so for keys and for values.

    It is found by the usual words (q, k, v; query, key, value; wq, wk, wv) where the names of a layer differ in that
    word only. Layers with higher numbers come later in the network. Queries are seen where the network uses the
    attention backend.

    Why: keys and values have the same shape, and often queries too. Swapped, they load without an error.
    Fix: correct the rule that the tensor's name matches, its `shard` above all, and the order in which your attention
    splits what it packed.
    """
    for found, groups in _groups(subject, heads):
        before, _ = found.look(closely=True)
        order: dict[str, dict[int, int]] = {}
        for group in _ends(groups):
            for role, name in group.names.items():
                if role == "query" and "query" not in before[0]:
                    continue
                noise = torch.randn(found.tensors[name].shape, generator=torch.Generator().manual_seed(1))
                with found.changed(name, found.tensors[name] + 0.5 * noise):
                    after, _ = found.look(closely=True)
                layer, changed = _first_change(before, after)
                if layer is None:
                    raise CheckFailed(f"{name!r} changes nothing that any layer hands to attention.")
                _require_role(name, role, group, changed, layer)
                order.setdefault(group.family, {})[group.layer] = layer
        for family, layers in order.items():
            if sorted(layers.values()) != [layers[number] for number in sorted(layers)]:
                raise CheckFailed(f"the layers of {family!r} (by its numbers: {layers}) stand in another order.")


def _require_role(name: str, role: str, group: Siblings, changed: set[str], layer: int) -> None:
    """A role's own tensor changes it and nothing else; keys may be values too, where values have no tensor."""
    wanted = {role}
    allowed = wanted | ({"value"} if role == "key" and "value" not in group.names else set())
    if not wanted <= changed <= allowed:
        raise CheckFailed(
            f"{name!r} is called a {role}'s, but in layer {layer} it changes the {' and '.join(sorted(changed))}."
        )


def _first_change(before: list[Mapping[str, Tensor]], after: list[Mapping[str, Tensor]]) -> tuple[int | None, set[str]]:
    for layer, (old, new) in enumerate(zip(before, after, strict=True)):
        changed = {role for role, tensor in old.items() if not _same(tensor, new[role])}
        if changed:
            return layer, changed
    return None, set()


@check(FamilySubject, when=unknown_names)
def check_gates_are_what_they_are_called(subject: FamilySubject, effort: Effort) -> None:
    """The answer of an MLP grows with the tensor that is not called its gate, in proportion; with the gate it does not.

    Gates are put through the activation. They are found by the usual words (gate and up, w1 and w3) where the names of
    two tensors differ in that word only.

    Why: both have one shape. Swapped, they load without an error.
    Fix: correct the rule that the tensor's name matches, its `shard` above all, and the order in which your MLP splits
    what it packed.
    """
    for found, groups in _groups(subject, gates):
        for group in _ends(groups):
            bends = {role: _bend(found, name) for role, name in group.names.items()}
            if bends["up"] > 1e-4 and bends["up"] > 30 * bends["gate"]:
                raise CheckFailed(
                    f"{group.names['up']!r} acts like a gate, and {group.names['gate']!r} like what it lets through."
                )


def _bend(found: Loaded, name: str) -> float:
    """How far what follows leaves the few directions in which a linear answer can turn it; 0 = not at all.

    What follows an MLP is seen behind a norm. Multiplied with a factor, a linear part moves the rows within a plane,
    and within one direction more for a bias or a second branch. The values of the next layer show it, or the last rows.
    """
    before, last = found.look()
    looks = []
    for factor in FACTORS:
        with found.changed(name, found.tensors[name] * factor):
            looks.append(found.look())
    layer, _ = _first_change(before, looks[0][0])
    seen = [hidden if layer is None else handed[layer]["value"] for handed, hidden in ((before, last), *looks)]
    rows = torch.stack(seen, dim=-2).double()  # [rows, (kv_heads,) factors, width]
    sizes = torch.linalg.svdvals(rows)
    bent = sizes[..., 3:].norm(dim=-1) / sizes[..., 0].clamp(min=1e-9)
    return float(bent.max()) if bent.numel() else 0.0


def _groups(
    subject: FamilySubject, find: Callable[[Iterable[str]], list[Siblings]]
) -> Iterator[tuple[Loaded, list[Siblings]]]:
    """Networks with the groups of names that only they have."""
    seen = set[str]()
    for layout in layouts(subject):
        groups = [group for group in find(layout.places) if not seen.issuperset(group.names.values())]
        seen.update(name for group in groups for name in group.names.values())
        if groups:
            yield Loaded.of(subject, layout), groups


def _ends(groups: Iterable[Siblings]) -> Iterator[Siblings]:
    """Of those that are alike but for numbers in their names (layers, experts) the first, and the last."""
    alike: dict[str, list[Siblings]] = {}
    for group in groups:
        alike.setdefault(group.family, []).append(group)
    for each in alike.values():
        yield from (each[0], each[-1]) if len(each) > 1 else each


def _same(a: Tensor, b: Tensor) -> bool:
    return bool(torch.allclose(a, b, atol=1e-5, rtol=1e-5))


CHECKS: tuple[AnyCheck, ...] = (
    check_projections_are_what_they_are_called,
    check_gates_are_what_they_are_called,
)
