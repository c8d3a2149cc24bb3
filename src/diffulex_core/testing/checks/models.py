"""Checks of networks over paged memory: what a row may depend on, what it must depend on, and what is written."""

from __future__ import annotations

from random import Random

import attrs
import torch
from torch import Tensor

from diffulex_core.protocols import DiffusionModel
from diffulex_core.testing.check import AnyCheck, CheckFailed, check
from diffulex_core.testing.checks import alignment, large_steps, other_numbers, visibility, witnesses
from diffulex_core.testing.effort import Effort
from diffulex_core.testing.forward import DenseAttention, Fed, Memory, context, hidden_rows, network_of, run
from diffulex_core.testing.sequences import (
    PAGE,
    Pass,
    draws,
    lengths,
    noise,
    pages_for,
    passes,
    run_alone,
    run_passes,
    scattered,
    token_ids,
)
from diffulex_core.testing.subjects import FamilySubject
from diffulex_core.testing.tolerances import require_close, rows_that_differ
from diffulex_core.testing.views import BLOCK, cut_view, views_of


@check(FamilySubject)
def check_rows_do_not_depend_on_their_batch(subject: FamilySubject, effort: Effort) -> None:
    """A sequence's logits are the same alone and beside others, in any order and with any number of padding rows.

    Why: requests come and go; what one of them answers must not depend on who is served with it.
    Fix: compute every row from that row and what attention gives it. Look for statistics over the whole batch
    (batch normalisation, a mean over rows, experts with a capacity) and for rows told apart by their place.
    """
    network = network_of(subject)
    for draw in draws(effort):
        for view in views_of(subject.family):
            made = passes(network, view, draw, 4)
            tables, pages = scattered([pages_for(len(each.tokens)) for each in made], draw)
            memory = Memory.of(network, pages, PAGE)
            together = run_passes(network, made, memory, tables)
            for each, logits in zip(made, together, strict=True):
                alone = run_alone(network, each, multiple=draw.choice((8, 24)))
                require_close(logits, alone, f"{_told(each)} beside {len(made) - 1} others, {view.name}")


@check(FamilySubject)
def check_pages_may_stand_anywhere(subject: FamilySubject, effort: Effort) -> None:
    """Logits do not depend on which physical pages a sequence has, nor on how many slots a page holds.

    Why: pages are handed out as they become free, and the page size is the user's.
    Fix: find K/V through the page tables of the batch, and write them to `ctx.slots`; use `ctx.attend`.
    """
    network = network_of(subject)
    for draw in draws(effort):
        view = draw.choice(list(views_of(subject.family)))
        [each] = passes(network, view, draw, 1)
        expected = run_alone(network, each)
        for page_size in (1, 3, 8, 32):
            [table], pages = scattered([pages_for(len(each.tokens), page_size)], draw, spare=3)
            memory = Memory.of(network, pages, page_size)
            noise(memory, draw)
            [logits] = run_passes(network, [each], memory, [table])
            require_close(logits, expected, f"{_told(each)} in pages of {page_size} slots, at {table}")


@check(FamilySubject)
def check_only_visible_slots_are_read(subject: FamilySubject, effort: Effort) -> None:
    """NaN and other numbers in pages that a sequence does not own, and in its slots that no row sees, change nothing.

    Why: pages hold what requests before left there; to read them mixes strangers into an answer.
    Fix: give attention the intervals of `ctx.batches`, and let nothing else read the pages.
    """
    network = network_of(subject)
    for draw in draws(effort):
        for view in views_of(subject.family):
            made = passes(network, view, draw, 2)
            tables, pages = scattered([pages_for(len(each.tokens)) + 1 for each in made], draw, spare=3)
            clean = run_passes(network, made, Memory.of(network, pages, PAGE), tables)
            noisy = Memory.of(network, pages, PAGE)
            noise(noisy, draw, 9.0)
            for name, memory in (("NaN", Memory.of(network, pages, PAGE, fill=float("nan"))), ("other numbers", noisy)):
                found = run_passes(network, made, memory, tables)
                for each, logits, expected in zip(made, found, clean, strict=True):
                    require_close(logits, expected, f"{_told(each)} with {name} in slots that it does not see")


@check(FamilySubject)
def check_only_the_named_slots_are_written(subject: FamilySubject, effort: Effort) -> None:
    """A forward writes K/V of every layer to the slots that it is given, and changes no other slot; -1 writes nothing.

    Why: a slot too many overwrites another request's K/V, or a page that several requests share.
    Fix: write rows whose slot is not negative, each to `ctx.slots` of that row; -1 as an index is the last slot.
    """
    network = network_of(subject)
    for draw in draws(effort):
        view = cut_view(subject.family)
        sizes = lengths(draw, 3)
        tables, pages = scattered([pages_for(size) for size in sizes], draw)
        fed = [
            Fed(
                tokens=token_ids(network, size, draw),
                ends=view.ends(size),
                table=table,
                store=place != 1,
                final=draw.random() < 0.5,
            )
            for place, (size, table) in enumerate(zip(sizes, tables, strict=True))
        ]
        memory = Memory.of(network, pages, PAGE)
        noise(memory, draw)
        before = memory.copy()
        run(network, memory, *fed)
        named = torch.tensor([slot for each in fed for slot in each.slots(PAGE) if slot >= 0])
        mapped = torch.zeros(pages * PAGE, dtype=torch.bool)
        mapped[named] = True
        for layer in range(len(network.kv_geometry)):
            for what, old, new in zip(("keys", "values"), before.flat(layer), memory.flat(layer), strict=True):
                changed = (old != new).flatten(1).any(1)
                if bool((changed & ~mapped).any()):
                    slot = int((changed & ~mapped).nonzero()[0])
                    raise CheckFailed(
                        f"layer {layer}: the {what} in slot {slot} changed; the forward was given {named.tolist()}."
                    )
                if bool((mapped & ~changed).any()):
                    slot = int((mapped & ~changed).nonzero()[0])
                    raise CheckFailed(f"layer {layer}: no {what} were written to slot {slot}, which a row was given.")


@check(FamilySubject)
def check_a_prefill_may_be_cut(subject: FamilySubject, effort: Effort) -> None:
    """A sequence fed in pieces of whole blocks gives the logits that it gives when fed at once.

    Why: long prompts are fed in chunks, so that they do not stall others.
    Fix: take positions from `positions`, and what a row sees from `ctx.batches`; rows count from 0 in every forward.
    """
    network, view = network_of(subject), cut_view(subject.family)
    for draw in draws(effort):
        length = 3 * BLOCK + draw.randrange(1, BLOCK)
        tokens = token_ids(network, length, draw)
        expected = run_alone(network, Pass(tokens=tokens, cut=0, view=view))
        cuts = sorted(draw.sample((BLOCK, 2 * BLOCK, 3 * BLOCK), draw.randint(1, 3)))
        table = list(reversed(range(pages_for(length))))
        memory, parts = Memory.of(network, len(table), PAGE), list[Tensor]()
        for start, end in zip([0, *cuts], [*cuts, length], strict=True):
            fed = Fed(tokens=tokens[start:end], start=start, ends=view.ends(end, start), table=table)
            parts += run(network, memory, fed)
        require_close(torch.cat(parts), expected, f"{length} tokens in pieces that begin at {[0, *cuts]}")


@check(FamilySubject)
def check_cached_decoding_equals_reading_it_whole(subject: FamilySubject, effort: Effort) -> None:
    """Decoding block by block over stored K/V, each block fed several times with other tokens, equals one whole pass.

    Why: the cache is an optimisation; only the last pass over a block may count.
    Fix: overwrite a block's K/V in every forward, keep nothing of earlier ones, and use absolute positions.
    """
    network, view = network_of(subject), cut_view(subject.family)
    for draw in draws(effort):
        length = 2 * BLOCK + draw.randrange(1, BLOCK)
        tokens = token_ids(network, length, draw)
        table = draw.sample(range(8), pages_for(length))
        memory = Memory.of(network, 8, PAGE, fill=float("nan"))
        for start in range(0, length, BLOCK):
            end = min(start + BLOCK, length)
            fed = Fed(tokens=tokens[start:end], start=start, ends=view.ends(end, start), table=table)
            for _ in range(2):
                masked = token_ids(network, end - start, draw)
                run(network, memory, attrs.evolve(fed, tokens=masked, final=False))
            [logits] = run(network, memory, fed)
            expected = run_alone(network, Pass(tokens=tokens[:end], cut=0, view=view))
            require_close(logits, expected[start:], f"block [{start}, {end}) over what is stored before it")


@check(FamilySubject)
def check_networks_keep_nothing_between_calls(subject: FamilySubject, effort: Effort) -> None:
    """A forward depends on its arguments alone and changes none of them, nor the weights; so does the head.

    Why: state belongs to requests. What a network remembers goes from one request, or one engine, to another.
    Fix: keep nothing on modules in `forward` and `logits`, not even a table that was made for another length, and write
    in place only to tensors that you made.
    """
    used = network_of(subject)
    weights = {name: tensor.clone() for name, tensor in _weights(used).items()}
    for draw in draws(effort):
        view = cut_view(subject.family)
        size = lengths(draw, 1)[0]
        asked = [Pass(tokens=token_ids(used, length, draw), cut=0, view=view) for length in (size, size, size + 5)]
        found = [run_alone(used, each) for each in (*asked, asked[0])]
        if asked[0].tokens != asked[1].tokens and not any(rows_that_differ(found[1], found[0])):
            raise CheckFailed(f"{_told(asked[1])} has the logits of another one of that length, which came before.")
        fresh = [run_alone(network_of(subject), each) for each in asked]
        for each, logits, expected in zip((*asked, asked[0]), found, (*fresh, fresh[0]), strict=True):
            require_close(logits, expected, f"{_told(each)} after other calls")
        _check_arguments(used, asked[0], draw)
    for name, tensor in _weights(used).items():
        if not torch.equal(tensor, weights[name]):
            raise CheckFailed(f"{name} has other values after some forwards.")


def _check_arguments(network: DiffusionModel, each: Pass, draw: Random) -> None:
    memory = Memory.of(network, pages_for(len(each.tokens)), PAGE)
    fed = each.second(range(pages_for(len(each.tokens))))
    told = context(network, memory, [fed], backend=DenseAttention(), padding=0)
    ids, positions = torch.tensor(list(fed.tokens)), torch.tensor(list(fed.positions))
    assert told.final is not None
    batches = [tensor for batch in told.batches for tensor in (batch.key_start, batch.key_end, batch.row_sequence)]
    given = {"input_ids": ids, "positions": positions, "ctx.slots": told.slots, "ctx.final": told.final}
    given |= {f"ctx.batches ({place})": tensor for place, tensor in enumerate(batches)}
    before = {name: tensor.clone() for name, tensor in given.items()}
    with torch.inference_mode():
        hidden = network(ids, positions, told)
        given["hidden"], before["hidden"] = hidden, hidden.clone()
        network.logits(hidden)
    for name, tensor in given.items():
        if not torch.equal(tensor, before[name]):
            raise CheckFailed(f"the forward, or the head, changed its argument {name}.")


@check(FamilySubject)
def check_the_head_reads_each_row_alone(subject: FamilySubject, effort: Effort) -> None:
    """`logits` gives a row of finite numbers for each hidden row, one for each id, whatever rows it is called with.

    Why: the head runs on the rows that will be sampled and on no others, in parts where they are many.
    Fix: let `logits` be a function of single rows; its columns are `vocab_size`, divided among the processes.
    """
    network = network_of(subject)
    for draw in draws(effort):
        view, length = cut_view(subject.family), 2 * BLOCK
        fed = Fed(tokens=token_ids(network, length, draw), ends=view.ends(length), table=range(pages_for(length)))
        hidden = hidden_rows(network, Memory.of(network, pages_for(length), PAGE), fed)
        with torch.inference_mode():
            expected = network.logits(hidden)
            if expected.shape != (length, network.vocab_size):
                raise CheckFailed(
                    f"logits of {length} rows have shape {list(expected.shape)}; vocab_size is {network.vocab_size}."
                )
            rows = [draw.randrange(length) for _ in range(16)]
            require_close(network.logits(hidden[rows]), expected[rows], f"the head on rows {rows}")


def _weights(network: DiffusionModel) -> dict[str, Tensor]:
    assert isinstance(network, torch.nn.Module), "a network is a torch.nn.Module"
    return dict(network.state_dict())


def _told(each: Pass) -> str:
    parts = f", of which {each.cut} are stored," if each.cut else ""
    return f"a sequence of {len(each.tokens)} tokens{parts}"


CHECKS: tuple[AnyCheck, ...] = (
    check_rows_do_not_depend_on_their_batch,
    check_pages_may_stand_anywhere,
    check_only_visible_slots_are_read,
    check_only_the_named_slots_are_written,
    check_a_prefill_may_be_cut,
    check_cached_decoding_equals_reading_it_whole,
    *visibility.CHECKS,
    check_networks_keep_nothing_between_calls,
    check_the_head_reads_each_row_alone,
    *large_steps.CHECKS,
    *other_numbers.CHECKS,
    *witnesses.CHECKS,
    *alignment.CHECKS,
)
