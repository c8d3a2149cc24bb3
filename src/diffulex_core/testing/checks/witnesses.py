"""Checks against witnesses: the same network divided among processes, and somebody else's implementation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any

import attrs
import torch
from torch import Tensor

from diffulex_core.distributed import Communicator, Seat
from diffulex_core.errors import ConfigError
from diffulex_core.plugin import Capability
from diffulex_core.protocols import DiffusionModel, SelfConditioned, SoftInputNetwork
from diffulex_core.testing.check import AnyCheck, CheckFailed, check
from diffulex_core.testing.effort import Effort
from diffulex_core.testing.forward import META, Fed, Memory, network_of, run
from diffulex_core.testing.layouts import drawn, plain_layout, unknown_names
from diffulex_core.testing.sequences import PAGE, Pass, draws, pages_for, passes, run_alone, run_passes, token_ids
from diffulex_core.testing.stored import folder_of, load
from diffulex_core.testing.subjects import FamilySubject
from diffulex_core.testing.thread_group import ThreadGroup
from diffulex_core.testing.tolerances import require_close
from diffulex_core.testing.views import BLOCK, cut_view, views_of
from diffulex_core.weights import NamesSources

SIZES = (2, 4)
"""Numbers of processes that are tried."""
PATIENCE = 20.0
"""Seconds that one process waits for the others."""


def _divisible(subject: FamilySubject) -> str | None:
    """Why the small network cannot be divided; None where it can, or where the family is broken."""
    try:
        subject.build(tp=Seat(0, 2), device=META)
    except ConfigError as error:
        return f"its tiny config.json is not divided among 2 processes: {' '.join(error.problems)}"
    except Exception:  # noqa: BLE001 - code under test may raise anything; the check itself will show it
        return None
    return None


@check(FamilySubject, when=_divisible)
def check_shares_agree(subject: FamilySubject, effort: Effort) -> None:
    """Several processes that each hold a share of the network give the logits of one that holds it whole.

    The processes are played by threads. Rank `r` gives the logits of the ids from `r * columns` on.

    Why: a shard that is dropped, added twice or held in another order answers nonsense on several devices alone.
    Fix: sum what row-parallel layers give (`ctx.tp.sum`), once; divide heads and vocabulary by the rank, and let
    `parts` say which range of a stored tensor is held. Or refuse the number of processes with a ConfigError.
    """
    whole = network_of(subject)
    [draw] = draws(effort, 0.05)
    made = passes(whole, cut_view(subject.family), draw, 3)
    logits = 2 * torch.randn(8, whole.vocab_size, generator=torch.Generator().manual_seed(3))
    expected = _answer(whole, made, logits)
    for size in SIZES:
        found = _divided(subject, size, made, logits)
        for rank, each in enumerate(found):
            for (what, got), (_, wanted) in zip(each, expected, strict=True):
                if what != "logits":
                    require_close(got, wanted, f"{what} of rank {rank} of {size}")
        if found:
            joined = torch.cat([dict(each)["logits"] for each in found], dim=-1)[:, : whole.vocab_size]
            require_close(joined, dict(expected)["logits"], f"logits of {size} processes together")


def _divided(subject: FamilySubject, size: int, made: Sequence[Pass], logits: Tensor) -> list[list[tuple[str, Tensor]]]:
    """What each of some processes answers; nothing when the network cannot be divided among so many."""

    def work(tp: Communicator) -> list[tuple[str, Tensor]]:
        network = network_of(subject, tp=tp)
        columns = -(-logits.shape[1] // size)
        padded = torch.nn.functional.pad(logits, (0, columns * size - logits.shape[1]), value=7.0)
        answer = _answer(network, made, padded[:, tp.rank * columns : (tp.rank + 1) * columns])
        if answer[0][1].shape[1] != columns:
            raise CheckFailed(
                f"rank {tp.rank} of {size} gives {answer[0][1].shape[1]} columns of logits, not {columns}."
            )
        return answer

    try:
        for rank in range(size):
            subject.build(tp=Seat(rank, size), device=META)
    except ConfigError:
        return []
    return ThreadGroup(size, seconds=PATIENCE).run(work)


def _answer(network: DiffusionModel, made: Sequence[Pass], logits: Tensor) -> list[tuple[str, Tensor]]:
    """The logits of some sequences, and what the network makes of embeddings, where it does."""
    needs = [pages_for(len(each.tokens)) for each in made]
    tables = [range(sum(needs[:place]), sum(needs[: place + 1])) for place in range(len(needs))]
    answer = [("logits", torch.cat(run_passes(network, made, Memory.of(network, sum(needs), PAGE), tables)))]
    with torch.inference_mode():
        if isinstance(network, SelfConditioned):
            answer.append(("soft_embeddings", network.soft_embeddings(logits)))
        if isinstance(network, SoftInputNetwork):
            ids = torch.arange(16).view(8, 2) * 5 % network.vocab_size
            answer.append(("blend", network.blend(ids, torch.full((8, 2), 0.5), torch.arange(8) % 2 > 0)))
    return answer


def _oracle_wanting(subject: FamilySubject) -> str | None:
    """Why the family's logits cannot be compared with another implementation's."""
    if subject.family.hf_reference is None:
        return "the family names no hf_reference"
    if Capability.SELF_CONDITIONING in subject.family.provides:
        return "a reference of a network with self-conditioning is called in a way of its own"
    try:
        named = isinstance(subject.resolver, NamesSources)
    except Exception:  # noqa: BLE001 - code under test may raise anything; the check itself will show it
        return None
    return unknown_names(subject) if named else "its resolver does not say which names a checkpoint has (`sources`)"


@check(FamilySubject, when=_oracle_wanting)
def check_logits_equal_the_reference(subject: FamilySubject, effort: Effort) -> None:
    """The logits of a random checkpoint are those of the family's `hf_reference`, whole and over stored K/V.

    The reference is called with `input_ids`, `position_ids`, `use_cache=False` and an additive 4-D `attention_mask`;
    one for each kind of layer, as transformers names them, where the family has sliding windows. It is compared once
    more with another rotary base and epsilon in config.json.

    Why: only somebody else's implementation shows a wrong norm, activation, rotary base, head order or scale.
    Fix: compare layer by layer with the published code. If the reference is at fault, mend that.
    """
    for each in (subject, *_with_other_numbers(subject)):
        _check_reference(each, effort)


def _with_other_numbers(subject: FamilySubject) -> Iterator[FamilySubject]:
    """With another rotary base and epsilon, where config.json has them at its top and the family takes the others.

    The small config.json may have the very numbers that a network that does not read them has built in.
    """
    config = dict(subject.config)
    for key, value in subject.config.items():
        if isinstance(value, float) and "theta" in key:
            config[key] = 3 * value
        if isinstance(value, float) and ("eps" in key or "epsilon" in key):
            config[key] = 0.05
    check_config = subject.family.check_config
    if config != dict(subject.config) and (check_config is None or not subject.load(check_config)(dict(config))):
        yield attrs.evolve(subject, config=config)


def _check_reference(subject: FamilySubject, effort: Effort) -> None:
    tensors = drawn(plain_layout(subject))
    assert subject.family.hf_reference is not None, "the check does not apply without one"
    oracle = subject.load(subject.family.hf_reference)(dict(subject.config), tensors)
    with folder_of(tensors) as folder:
        network, _ = load(subject, folder)
    assert isinstance(network, DiffusionModel), "a family builds a DiffusionModel"
    for draw in draws(effort, 0.05):
        for view in views_of(subject.family):
            for length in (1, BLOCK + 1, 3 * BLOCK + 2):
                each = Pass(tokens=token_ids(network, length, draw), cut=0, view=view)
                expected = _reference(oracle, each, network.windows)
                require_close(run_alone(network, each), expected, f"{length} tokens, {view.name}")
        _check_cached(network, oracle, subject, draw)


def _check_cached(network: DiffusionModel, oracle: Callable[..., Any], subject: FamilySubject, draw: Random) -> None:
    view, length = cut_view(subject.family), 2 * BLOCK + 3
    each = Pass(tokens=token_ids(network, length, draw), cut=0, view=view)
    expected = _reference(oracle, each, network.windows)
    memory = Memory.of(network, pages_for(length), PAGE, fill=float("nan"))
    for start in range(0, length, BLOCK):
        end = min(start + BLOCK, length)
        fed = Fed(
            tokens=each.tokens[start:end], start=start, ends=view.ends(end, start), table=range(pages_for(length))
        )
        [logits] = run(network, memory, fed)
        require_close(logits, expected[start:end], f"block [{start}, {end}) over stored K/V")


def _reference(oracle: Callable[..., Any], each: Pass, windows: Sequence[int | None]) -> Tensor:
    """[rows, vocab] of a whole sequence."""
    length = len(each.tokens)
    ends = torch.tensor(each.view.ends(length))[:, None]
    keys, rows = torch.arange(length)[None], torch.arange(length)[:, None]
    masks = {
        window: torch.where(
            (keys < ends) & (True if window is None else keys > rows - window), 0.0, torch.finfo(torch.float32).min
        )[None, None]
        for window in windows
    }
    sliding = next((window for window in windows if window is not None), None)
    named = {"full_attention": masks.get(None), "sliding_attention": masks[sliding] if sliding else None}
    with torch.no_grad():
        output = oracle(
            input_ids=torch.tensor(list(each.tokens))[None],
            position_ids=torch.arange(length)[None],
            attention_mask=masks[None] if set(masks) == {None} else named,
            use_cache=False,
        )
    logits: Tensor = output.logits[0].float()
    return logits


CHECKS: tuple[AnyCheck, ...] = (check_shares_agree, check_logits_equal_the_reference)
