"""What one way of decoding did on the problems: counts of answers, forwards, rows and edits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from diffulex_core.outputs import GenerationOutputs, ReqTrajectory
from diffulex_core.types import Canvas


@attrs.frozen(kw_only=True)
class Edits:
    """Tokens that took the place of decided ones.

    Attributes:
        made: all of them.
        helped: those that put the expected token in the place of another one.
        hurt: those that put another token in the place of the expected one. `helped - hurt` is how many more tokens are
            right than would be if every position had kept its first token.
    """

    made: int = 0
    helped: int = 0
    hurt: int = 0

    def plus(self, other: Edits) -> Edits:
        return Edits(made=self.made + other.made, helped=self.helped + other.helped, hurt=self.hurt + other.hurt)


@attrs.define
class EditWatch:
    """Counts the edits of one answer from its canvas after each step."""

    expected: Sequence[int]
    """Token ids of the right answer, its end token included; edits behind it neither help nor hurt."""
    edits: Edits = attrs.field(factory=Edits)
    _last: dict[int, int] = attrs.field(factory=dict)

    def see(self, canvas: Canvas) -> None:
        """Compare with what each position held when it was last decided; positions that are masked again wait."""
        decided = zip(canvas.tokens.tolist(), canvas.decided.tolist(), strict=True)
        for at, token in ((at, token) for at, (token, is_decided) in enumerate(decided) if is_decided):
            before = self._last.get(at, token)
            self._last[at] = token
            if before != token:
                wanted = self.expected[at] if at < len(self.expected) else None
                self.edits = self.edits.plus(Edits(made=1, helped=int(token == wanted), hurt=int(before == wanted)))


@attrs.frozen(kw_only=True)
class Speed:
    """Tokens per second of the processor's time, of one thread, over interleaved rounds."""

    median: float
    lowest: float
    highest: float
    rounds: int


@attrs.frozen(kw_only=True)
class Result:
    """One point of a sweep.

    Attributes:
        model, task: what was asked, and which problems.
        way: the curve that the point belongs to; `strategy` and `settings` say what it stands for.
        knob, value: what the sweep changes, and to what.
        problems, exact: answers asked for, and those that are right to the last character and ended by themselves.
        answer_tokens: length of the shortest right answer, its end token included.
        tpf: visible tokens per decode forward, mean over answers.
        tpf_total: the same with forwards that fed known tokens only.
        tpf_stores: the same as `tpf`, with one more forward for each block that was stored: what a decoder spends that
            stores a block before it starts the next one. None where blocks run side by side or none are stored.
        forwards: mean of an answer, those of `tpf_total`.
        rows, head_rows: mean of an answer, through the network and through its head.
        rows_per_forward: mean rows of a decode forward that were not known tokens.
        edits: None where nothing is revised.
        reasons: share of the answers that ended for each reason.
        speed: None = not measured.
    """

    model: str
    task: str
    way: str
    strategy: str
    knob: str
    value: Any
    settings: Mapping[str, Any]
    problems: int
    exact: int
    answer_tokens: int
    tpf: float
    tpf_total: float
    tpf_stores: float | None
    forwards: float
    rows: float
    head_rows: float
    rows_per_forward: float
    edits: Edits | None
    reasons: Mapping[str, float]
    speed: Speed | None = None

    @property
    def accuracy(self) -> float:
        return self.exact / self.problems


def is_right(answer: ReqTrajectory, expected: str) -> bool:
    """Whether the text is the expected one, character for character, and the model ended it itself."""
    return answer.eos_token_generated and answer.text == expected


def counted(outputs: GenerationOutputs, *, stores_alone: int | None) -> dict[str, Any]:
    """The counts of a `Result`.

    Args:
        stores_alone: length of the blocks of which one runs at a time; None = several do, or there are none.
    """
    count = len(outputs)
    decoding = [step for each in outputs for step in each.trajectory if not step.is_prefill]
    reasons = Counter(each.completion_reason.value for each in outputs)
    return {
        "tpf": outputs.tpf,
        "tpf_total": outputs.tpf_total,
        "tpf_stores": None if stores_alone is None else tpf_with_stores(outputs, stores_alone),
        "forwards": outputs.nfe,
        "rows": (outputs.prefill_tokens + outputs.decode_rows) / count,
        "head_rows": outputs.head_rows / count,
        "rows_per_forward": sum(step.rows - step.catch_up_rows for step in decoding) / max(1, len(decoding)),
        "reasons": {reason: number / count for reason, number in sorted(reasons.items())},
    }


def tpf_with_stores(outputs: GenerationOutputs, block_size: int) -> float:
    """Mean visible tokens per decode forward if each stored block had cost a forward of its own."""
    ratios = [
        each.tokens_visible / (each.nfe_decode + stored_blocks(each, block_size)) for each in outputs if each.nfe_decode
    ]
    return sum(ratios) / len(ratios) if ratios else 0.0


def stored_blocks(answer: ReqTrajectory, block_size: int) -> int:
    """Blocks with tokens of the answer whose K/V were stored in their final form."""
    # K/V are stored by whole blocks, of which the first may begin in the prompt.
    return (answer.prompt_tokens + answer.tokens_committed) // block_size - answer.prompt_tokens // block_size
