"""Sequences that networks under test are fed: random tokens, scattered pages, and whole passes over them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random

import attrs
import torch
from torch import Tensor

from diffulex_core.protocols import DiffusionModel
from diffulex_core.testing.effort import Effort
from diffulex_core.testing.forward import ROWS, Fed, Memory, run
from diffulex_core.testing.views import BLOCK, View

PAGE = 4
"""Slots of a page in the kit's sequences."""
SHARE = 0.1
"""Of a property's examples, how many a network is run on; each is dozens of rows."""


def draws(effort: Effort, share: float = SHARE) -> Iterator[Random]:
    """A source of random numbers for each example; always the same ones."""
    for seed in range(effort.examples(share)):
        yield Random(seed)


def token_ids(network: DiffusionModel, length: int, draw: Random) -> list[int]:
    """Ids from the whole vocabulary."""
    return [draw.randrange(network.vocab_size) for _ in range(length)]


def lengths(draw: Random, count: int) -> list[int]:
    """Of sequences: below, at and above whole blocks and pages."""
    return [draw.choice((1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 3 * BLOCK + 2)) for _ in range(count)]


def pages_for(slots: int, page_size: int = PAGE) -> int:
    """Pages that hold so many slots."""
    return -(-slots // page_size)


def scattered(needs: Sequence[int], draw: Random, spare: int = 2) -> tuple[list[list[int]], int]:
    """A page table of random pages for each sequence that needs so many, and the number of all pages."""
    total = sum(needs) + spare
    free = list(range(total))
    draw.shuffle(free)
    return [[free.pop() for _ in range(need)] for need in needs], total


@attrs.frozen(kw_only=True, eq=False)
class Pass:
    """A sequence that is fed in two forwards: up to `cut`, where nothing is sampled, and from there on.

    Attributes:
        tokens: all of it.
        cut: position of the second forward's first row; 0 = there is only one.
        view: who sees whom; before the cut nothing sees past it.
        settled: whether the second forward's rows are final.
    """

    tokens: Sequence[int]
    cut: int
    view: View
    settled: bool = True

    def first(self, table: Sequence[int]) -> Fed:
        """The rows before the cut."""
        return Fed(tokens=self.tokens[: self.cut], ends=self.view.ends(self.cut), table=table)

    def second(self, table: Sequence[int]) -> Fed:
        """The rows from the cut on."""
        length = len(self.tokens)
        return Fed(
            tokens=self.tokens[self.cut :],
            start=self.cut,
            ends=self.view.ends(length, self.cut),
            table=table,
            final=self.settled,
        )


def passes(network: DiffusionModel, view: View, draw: Random, count: int) -> list[Pass]:
    """Random sequences, some with rows that are stored already."""
    made = []
    for length in lengths(draw, count):
        whole = (length - 1) // BLOCK
        cut = BLOCK * draw.randint(0, whole) if view.cuts else 0
        made.append(Pass(tokens=token_ids(network, length, draw), cut=cut, view=view, settled=draw.random() < 0.5))
    return made


def run_passes(
    network: DiffusionModel,
    made: Sequence[Pass],
    memory: Memory,
    tables: Sequence[Sequence[int]],
    *,
    multiple: int = ROWS,
) -> list[Tensor]:
    """Feed sequences together, in two forwards; the logits of their second parts."""
    earlier = [each.first(table) for each, table in zip(made, tables, strict=True) if each.cut]
    if earlier:
        run(network, memory, *earlier, multiple=multiple)
    return run(
        network, memory, *(each.second(table) for each, table in zip(made, tables, strict=True)), multiple=multiple
    )


def run_alone(network: DiffusionModel, each: Pass, *, page_size: int = PAGE, multiple: int = ROWS) -> Tensor:
    """The logits of one sequence's second part, with pages in order and nothing beside it."""
    count = pages_for(len(each.tokens), page_size)
    memory = Memory.of(network, count, page_size)
    (logits,) = run_passes(network, [each], memory, [range(count)], multiple=multiple)
    return logits


def noise(memory: Memory, draw: Random, scale: float = 1.0) -> None:
    """Fill all pages with random numbers."""
    generator = torch.Generator().manual_seed(draw.randrange(2**31))
    for pages in (*memory.keys, *memory.values):
        pages.copy_(torch.randn(pages.shape, generator=generator) * scale)
