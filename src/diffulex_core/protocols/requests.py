"""What decodes: one request, what those of a kind do together, and who builds them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

from diffulex_core.pattern import IntArray
from diffulex_core.req_context import ReqContext
from diffulex_core.sampling_params import SamplingParams
from diffulex_core.types import Canvas, CompletionReason, Decision, Outline, Span, Spans

KindredReq = TypeVar("KindredReq", contravariant=True)


@runtime_checkable
class Req(Protocol):
    """One request's decoding state: its tokens, its blocks, and what it wants to feed next."""

    @property
    def request_id(self) -> int:
        """The id that the engine gave it; not negative."""
        ...

    @property
    def params(self) -> SamplingParams:
        """What the user asked for."""
        ...

    @property
    def prompt_len(self) -> int:
        """Tokens of the prompt: the answer begins at this position."""
        ...

    @property
    def nfe(self) -> int:
        """Forwards that the request has taken part in, prefill included."""
        ...

    @property
    def draws(self) -> int:
        """Sampling steps so far: the counter of the request's random draws."""
        ...

    @property
    def known_tokens(self) -> IntArray:
        """[n] tokens whose K/V may be taken from shared pages: whole blocks that can never change again."""
        ...

    @property
    def stored_tokens(self) -> IntArray:
        """[n] all tokens from position 0 through the last running block, decided or masked."""
        ...

    @property
    def output_tokens(self) -> IntArray:
        """[n] the longest decided prefix of the answer, cut at the stop token and the limits; holds no mask token."""
        ...

    @property
    def canvas(self) -> Canvas:
        """A copy of the answer region as it stands, for streams and traces."""
        ...

    @property
    def completion(self) -> CompletionReason | None:
        """Why the request is done, or None while it goes on."""
        ...

    def most_slots(self) -> int:
        """KV slots that the request needs, in each of its sequences, if it runs to its limit."""
        ...

    def most_rows(self) -> int:
        """Rows (`Span.rows`) of the largest span that must be fed in one step, those of a second sequence included."""
        ...

    def plan(self, stored: int, budget: int | None) -> Span | None:
        """What to feed next, without changing anything.

        Args:
            stored: K/V of positions below this are in the request's pages, final.
            budget: most rows (`Span.rows`) to feed; None = no limit.
        Returns:
            A span of at most `budget` rows, or None when nothing useful fits.
        """
        ...

    def chunkable(self, stored: int) -> bool:
        """Whether the next span may be cut shorter (a prefill), so that a block's rows are enough to make progress."""
        ...

    def apply(self, span: Span, decision: Decision) -> None:
        """Take over what one forward decided. Afterwards `completion` may be set.

        A request that does not take what the sampler accepted writes into `decision.accepted` what it took: positions
        whose token it set, decided anew or replaced.
        """
        ...

    def preempted(self) -> None:
        """Take note that the pages are gone, and with them all K/V that were not final."""
        ...

    def finish(self, reason: CompletionReason) -> None:
        """End the request now; its output is the longest decided prefix."""
        ...


@runtime_checkable
class ReqKind(Protocol[KindredReq]):
    """What requests of one kind do together: the same as one by one, in fewer operations."""

    def plan(self, requests: Sequence[KindredReq], outlines: Sequence[Outline]) -> Spans:
        """The spans that some outlines stand for, without changing anything.

        Args:
            requests: different ones.
            outlines: what each said that it would feed.
        """
        ...

    def apply(self, requests: Sequence[KindredReq], spans: Spans, decisions: Sequence[Decision]) -> None:
        """As `Req.apply` for each of the requests.

        Args:
            requests: different ones.
            spans: what each was fed, planned together or by itself.
            decisions: one for each.
        """
        ...


@runtime_checkable
class JointReq(Req, Protocol):
    """What a request offers besides `Req` that may be planned and moved on together with others of its kind."""

    @property
    def kind(self) -> ReqKind[Any] | None:
        """Those of equal kinds go together; None = it goes by itself. The same throughout its life."""
        ...

    def outline(self, stored: int) -> Outline | None:
        """The numbers of what `plan(stored, None)` returns, where no smaller span would be useful.

        None: `plan` is to be asked. It always is for spans that can be cut, or that an outline cannot describe.
        """
        ...


@runtime_checkable
class GuidedReq(Req, Protocol):
    """What a request that may own a second sequence (classifier-free guidance) offers besides `Req`.

    The second sequence has pages of its own. Its spans are `Span.guidance`: both sequences are fed in the same forward,
    and nothing of them is ever final.
    """

    @property
    def guided(self) -> bool:
        """Whether the request owns two sequences; the same throughout its life."""
        ...


@runtime_checkable
class Foreseeing(Protocol):
    """A request whose forwards are planned ahead, so that it can say what an early end saves."""

    @property
    def steps_left(self) -> int | None:
        """Forwards that would follow if nothing ended it early; None where that depends on what is decided."""
        ...


class ReqFactory(Protocol):
    """Builds a strategy's requests (the strategy's `req` reference)."""

    def __call__(self, *, request_id: int, prompt: IntArray, params: SamplingParams, context: ReqContext) -> Req: ...
