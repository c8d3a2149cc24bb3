"""A check of weight resolvers: how often the numbers of a network are written."""

from __future__ import annotations

import torch

from diffulex_core.testing.check import AnyCheck, CheckFailed, check
from diffulex_core.testing.effort import Effort
from diffulex_core.testing.layouts import distinct, layouts, unknown_names
from diffulex_core.testing.stored import blank, folder_of, load
from diffulex_core.testing.subjects import FamilySubject
from diffulex_core.testing.writes import Writes


@check(FamilySubject, when=unknown_names, level="recommended")
def check_no_number_is_written_twice(subject: FamilySubject, effort: Effort) -> None:
    """A load writes every number of a parameter or buffer once, however the checkpoint is stored.

    Where a checkpoint holds one tensor under several names, it is written once for all of them.

    Why: of two writes to one place the second wins, and which one that is depends on the order of the files.
    Fix: let each tensor fill its own part, and a `loader` of your own write only that.
    """
    for layout in layouts(subject):
        network = blank(subject)
        with folder_of(distinct(layout)) as folder, Writes(network) as writes:
            load(subject, folder, network)
        for name, count in writes.counts.items():
            twice = int((count > 1).sum())
            if twice:
                raise CheckFailed(
                    f"stored {layout.name}: {twice} of {count.numel()} numbers of {name} were written more than once, "
                    f"up to {int(torch.max(count))} times."
                )


CHECKS: tuple[AnyCheck, ...] = (check_no_number_is_written_twice,)
