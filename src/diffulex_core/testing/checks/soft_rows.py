"""Checks of networks that are fed embeddings: token merge (`soft_inputs`) and self-conditioning."""

from __future__ import annotations

import torch
from torch import Tensor

from diffulex_core.plugin import Capability
from diffulex_core.protocols import DiffusionModel, SelfConditioned, SoftInputNetwork
from diffulex_core.testing.check import AnyCheck, CheckFailed, check
from diffulex_core.testing.effort import Effort
from diffulex_core.testing.forward import Fed, Memory, network_of, run
from diffulex_core.testing.sequences import PAGE, draws, token_ids
from diffulex_core.testing.subjects import FamilySubject
from diffulex_core.testing.tolerances import require_close, rows_that_differ


def _hard(subject: FamilySubject) -> str | None:
    if Capability.SOFT_INPUTS not in subject.family.provides:
        return f"the family does not provide {Capability.SOFT_INPUTS}"
    return None


@check(FamilySubject, when=_hard)
def check_blends_stand_in_for_tokens(subject: FamilySubject, effort: Effort) -> None:
    """A blend of one token is that token, one of several is the weighted sum of their embeddings, each row alone.

    `match_norm` scales the sum of its rows to the weighted sum of the norms. Ids of weight 0 count for nothing, and
    weights are taken as they are: half of them give half the sum.

    Why: token merge feeds blends in place of ids; what a strategy makes of them rests on their being exact.
    Fix: let `blend` sum rows of the embedding in fp32, and let `forward` put `ctx.soft` in place of the embedded ids.
    """
    network = network_of(subject)
    if not isinstance(network, SoftInputNetwork):
        raise CheckFailed(f"the family provides {Capability.SOFT_INPUTS}, but its network has no blend().")
    for draw in draws(effort):
        ids = torch.tensor([token_ids(network, 2, draw) for _ in range(8)])
        share = torch.rand(8, generator=torch.Generator().manual_seed(draw.randrange(999))) * 0.8 + 0.1
        with torch.inference_mode():
            one = [network.blend(ids[:, place : place + 1], torch.ones(8, 1), torch.zeros(8) > 0) for place in (0, 1)]
            weights = torch.stack((share, 1 - share), dim=1)
            mixed = network.blend(ids, weights, torch.zeros(8) > 0)
            scaled = network.blend(ids, weights, torch.ones(8) > 0)
            matched = torch.arange(8) % 2 == draw.randrange(2)
            some, half = (network.blend(ids, weights * part, matched) for part in (1.0, 0.5))
            more, nothing = torch.cat((ids, ids.flip(0)), dim=1), torch.zeros(8, 2)
            filled = network.blend(more, torch.cat((weights, nothing), dim=1), torch.zeros(8) > 0)
        expected = share[:, None] * one[0] + (1 - share[:, None]) * one[1]
        require_close(mixed, expected, "blends of two tokens against the sum of blends of one")
        require_close(filled, expected, "blends with further ids of weight 0")
        norm = share * one[0].norm(dim=1) + (1 - share) * one[1].norm(dim=1)
        wanted = expected * (norm / expected.norm(dim=1).clamp(min=1e-9))[:, None]
        require_close(scaled, wanted, "blends with match_norm")
        wanted = torch.where(matched[:, None], wanted, expected)
        require_close(some, wanted, f"blends with match_norm in rows {matched.nonzero().flatten().tolist()} alone")
        require_close(half, wanted / 2, "blends whose weights sum to a half")
        tokens = token_ids(network, 8, draw)
        blended = [row for row in range(8) if draw.random() < 0.5]
        hard = [int(ids[row, 0]) if row in blended else token for row, token in enumerate(tokens)]
        got = _logits(network, tokens, one[0], blended)
        require_close(got, _logits(network, hard, one[0], []), f"logits where rows {blended} are blends of one token")


def _unconditioned(subject: FamilySubject) -> str | None:
    if Capability.SELF_CONDITIONING not in subject.family.provides:
        return f"the family does not provide {Capability.SELF_CONDITIONING}"
    return None


@check(FamilySubject, when=_unconditioned)
def check_self_conditioning_is_heeded(subject: FamilySubject, effort: Effort) -> None:
    """`soft_embeddings` is the embedding that a row's distribution expects, and rows that are not final heed it.

    A distribution over two tokens lies between theirs. Zeros count as no embedding at all.

    Why: what a step believed is fed to the next one; a network that ignores it decodes worse, without an error.
    Fix: take the softmax over the vocabulary of all processes, multiply it with the embedding as tokens are scaled, and
    read `ctx.soft` beside the embeddings of these rows' ids.
    """
    network = network_of(subject)
    if not isinstance(network, SelfConditioned):
        raise CheckFailed(
            f"the family provides {Capability.SELF_CONDITIONING}, but its network has no soft_embeddings()."
        )
    for draw in draws(effort):
        ids = torch.tensor([draw.sample(range(network.vocab_size), 2) for _ in range(8)])
        rows = torch.arange(8)
        peaks = []
        for place in (0, 1):
            logits = torch.full((8, network.vocab_size), -60.0)
            logits[rows, ids[:, place]] = 0.0
            peaks.append(logits)
        with torch.inference_mode():
            first, second, both = (
                network.soft_embeddings(logits) for logits in (*peaks, torch.maximum(peaks[0], peaks[1]))
            )
        require_close(both, (first + second) / 2, "the embedding of a distribution over two tokens")
        tokens = token_ids(network, 8, draw)
        told = [row for row in range(8) if draw.random() < 0.5] or [7]
        nothing = _logits(network, tokens, first, [])
        silent = _logits(network, tokens, torch.zeros_like(first), told)
        require_close(silent, nothing, f"logits where rows {told} have embeddings of zero")
        changed = rows_that_differ(_logits(network, tokens, first, told), nothing)
        if changed != [row in told for row in range(8)]:
            found = [row for row, differs in enumerate(changed) if differs]
            raise CheckFailed(f"rows {told} are told what was believed of them, and rows {found} heed it.")


def _logits(network: DiffusionModel, tokens: list[int], soft: Tensor, told: list[int]) -> Tensor:
    """Of eight rows that are not final and see only themselves, some of which are fed embeddings."""
    fed = [
        Fed(tokens=[token], ends=[1], table=[row], final=False, soft=soft[row : row + 1] if row in told else None)
        for row, token in enumerate(tokens)
    ]
    return torch.cat(run(network, Memory.of(network, 8, PAGE), *fed))


CHECKS: tuple[AnyCheck, ...] = (check_blends_stand_in_for_tokens, check_self_conditioning_is_heeded)
