"""Checks of what rows of a network see: the key intervals and the positions that they are given, and nothing else."""

from __future__ import annotations

from random import Random

import torch

from diffulex_core.protocols import DiffusionModel
from diffulex_core.testing.check import AnyCheck, CheckFailed, check
from diffulex_core.testing.effort import Effort
from diffulex_core.testing.forward import Fed, Memory, network_of, run
from diffulex_core.testing.sequences import PAGE, draws, noise, pages_for, token_ids
from diffulex_core.testing.subjects import FamilySubject
from diffulex_core.testing.tolerances import require_close, rows_that_differ
from diffulex_core.testing.views import BLOCK, View, views_of


@check(FamilySubject)
def check_rows_see_the_keys_that_they_are_given(subject: FamilySubject, effort: Effort) -> None:
    """Changing one stored key or value of one layer changes exactly the rows whose interval holds that slot.

    Every layer must follow one of the layer kinds that the network declares in `windows`.

    Why: the strategy decides who sees whom. One key too many leaks tokens that are not decided yet; one too few answers
    from less than was trained on, and neither raises an error.
    Fix: hand `ctx.attend` the layer's own index and kind, and build no mask of your own.
    """
    network = network_of(subject)
    for draw in draws(effort, 0.05):
        _check_intervals(network, draw)


def _check_intervals(network: DiffusionModel, draw: Random) -> None:
    """One row for each of many sequences, over random K/V; in each sequence one slot is changed."""
    rows, slots = 48, 3 * PAGE
    kinds = range(len(network.windows))
    fed, changed = list[Fed](), list[int]()
    for row in range(rows):
        at = draw.randrange(slots)
        starts = [draw.randint(0, at) for _ in kinds]
        end = draw.randint(at + 1, slots)
        edges = {edge for start in starts for edge in (start - 1, start)} | {end - 1, end, draw.randrange(slots)}
        choices = sorted(edge for edge in edges if 0 <= edge < slots and edge != at)
        changed.append(draw.choice(choices))
        fed.append(
            Fed(
                tokens=token_ids(network, 1, draw),
                start=at,
                ends=[end],
                table=range(3 * row, 3 * row + 3),
                starts=[[start] for start in starts],
                final=draw.random() < 0.5,
            )
        )
    memory = Memory.of(network, 3 * rows, PAGE)
    noise(memory, draw, 0.5)
    expected = torch.cat(run(network, memory.copy(), *fed))
    written = torch.tensor([row * slots + slot for row, slot in enumerate(changed)])
    inside = [
        [each.first_keys(kind, None)[0] <= slot < each.ends[0] for each, slot in zip(fed, changed, strict=True)]
        for kind in kinds
    ]
    used = set[int]()
    for layer in range(len(network.kv_geometry)):
        for place, what in enumerate(("key", "value")):
            other = memory.copy()
            stored = other.flat(layer)[place]
            stored[written] += 4 * torch.randn(stored[written].shape, generator=torch.Generator().manual_seed(layer))
            found = rows_that_differ(torch.cat(run(network, other, *fed)), expected)
            used |= {kind for kind in kinds if found == inside[kind]}
            if found in inside:
                continue
            best = max(kinds, key=lambda kind: sum(a == b for a, b in zip(found, inside[kind], strict=True)))
            row = next(row for row in range(rows) if found[row] != inside[best][row])
            start, end = fed[row].first_keys(best, None)[0], fed[row].ends[0]
            said = "changed" if found[row] else "did not change"
            raise CheckFailed(
                f"layer {layer}: the row at position {fed[row].start} sees [{start}, {end}), but it {said} with the"
                f" {what} in slot {changed[row]}."
            )
    if unused := set(kinds) - used:
        kind = min(unused)
        raise CheckFailed(f"windows declares {list(network.windows)}, but no layer heeds kind {kind} of them.")


@check(FamilySubject)
def check_declared_visibility_is_real(subject: FamilySubject, effort: Effort) -> None:
    """Another token changes the logits of every row that sees it, and of no row that nothing leads to from it.

    It is tried under each visibility that the family provides (block-causal, full-prefix, full attention).

    Why: a capability is a promise to strategies. A network that is causal whatever it is told decodes a block blindly.
    Fix: follow `ctx.batches` for the rows of the same forward too, and let rows meet nowhere but in attention.
    """
    network = network_of(subject)
    for draw in draws(effort, 0.05):
        for view in views_of(subject.family):
            _check_tokens(network, view, draw)


def _check_tokens(network: DiffusionModel, view: View, draw: Random) -> None:
    length = 2 * BLOCK + 3
    tokens = token_ids(network, length, draw)
    need = pages_for(length)
    fed = [Fed(tokens=tokens, ends=view.ends(length), table=range(need))]
    for place in range(length):
        other = (tokens[place] + draw.randrange(1, network.vocab_size)) % network.vocab_size
        table = range((place + 1) * need, (place + 2) * need)
        fed.append(Fed(tokens=[*tokens[:place], other, *tokens[place + 1 :]], ends=view.ends(length), table=table))
    expected, *found = run(network, Memory.of(network, (length + 1) * need, PAGE), *fed)
    sees = [
        [row == key or any(first <= key < end for first in firsts) for key in range(length)]
        for row, (end, *firsts) in enumerate(
            zip(
                fed[0].ends,
                *(fed[0].first_keys(kind, window) for kind, window in enumerate(network.windows)),
                strict=True,
            )
        )
    ]
    reached = sees
    for _ in network.kv_geometry:
        reached = [
            [any(sees[row][by] and reached[by][key] for by in range(length)) for key in range(length)]
            for row in range(length)
        ]
    for key, logits in enumerate(found):
        for row, differs in enumerate(rows_that_differ(logits, expected)):
            if differs and not reached[row][key]:
                raise CheckFailed(
                    f"{view.name}: row {row} of {length}, which sees [0, {fed[0].ends[row]}), changes with token {key}."
                )
            if sees[row][key] and not differs:
                raise CheckFailed(
                    f"{view.name}: row {row} of {length} sees [0, {fed[0].ends[row]}), but it does not change with"
                    f" token {key}."
                )


@check(FamilySubject)
def check_positions_come_from_the_positions(subject: FamilySubject, effort: Effort) -> None:
    """A row answers the same wherever its sequence's K/V are stored.

    Why: slots are no positions: the sparse cache packs what it keeps, and chunks begin anywhere.
    Fix: rotate, or embed, by the `positions` that the network is called with, and by nothing else.
    """
    network = network_of(subject)
    for draw in draws(effort):
        shift, length = draw.randrange(1, BLOCK), 2 * BLOCK
        table = list(range(pages_for(length + shift)))
        stored = Memory.of(network, len(table), PAGE)
        noise(stored, draw, 0.5)
        moved = stored.copy()
        for layer in range(len(network.kv_geometry)):
            for old, new in zip(stored.flat(layer), moved.flat(layer), strict=True):
                new[shift : shift + length] = old[:length]
        kinds, at = range(len(network.windows)), length - 1
        one = Fed(tokens=token_ids(network, 1, draw), start=at, ends=[length], table=table, starts=[[0] for _ in kinds])
        [expected] = run(network, stored.copy(), one)
        elsewhere = Fed(
            tokens=one.tokens,
            start=at,
            slot=at + shift,
            ends=[length + shift],
            table=table,
            starts=[[shift] for _ in kinds],
        )
        [logits] = run(network, moved, elsewhere)
        require_close(
            logits, expected, f"position {at} whose K/V, with those before it, stand {shift} slots further on"
        )


@check(FamilySubject, level="recommended")
def check_positions_matter(subject: FamilySubject, effort: Effort) -> None:
    """A row answers otherwise at another position.

    Why: a network that forgets to rotate, or to embed, its positions reads a prompt as a bag of words.
    Fix: pass `positions` on to whatever encodes them. A network that was trained without says so in
    `expected_failures`.
    """
    network = network_of(subject)
    for draw in draws(effort):
        stored = Memory.of(network, pages_for(2 * BLOCK), PAGE)
        noise(stored, draw, 0.5)
        at, tokens, kinds = 2 * BLOCK - 1, token_ids(network, 1, draw), range(len(network.windows))
        answers = [
            run(
                network,
                stored.copy(),
                Fed(
                    tokens=tokens,
                    start=position,
                    slot=at,
                    ends=[at + 1],
                    table=range(pages_for(2 * BLOCK)),
                    starts=[[0] for _ in kinds],
                ),
            )
            for position in (at, at + 3)
        ]
        if not any(rows_that_differ(answers[1][0], answers[0][0])):
            raise CheckFailed(f"the logits at position {at + 3} are those at position {at}: positions change nothing.")


CHECKS: tuple[AnyCheck, ...] = (
    check_rows_see_the_keys_that_they_are_given,
    check_declared_visibility_is_real,
    check_positions_come_from_the_positions,
    check_positions_matter,
)
