"""Canvas requests to keep a scheduler busy with: two sequences (guidance), pages for one step (the sparse cache)."""

from __future__ import annotations

import attrs
import numpy as np

from diffulex_core.canvas.options import CanvasOptions
from diffulex_core.canvas.request import CanvasRequest
from diffulex_core.canvas.rule import Region
from diffulex_core.pattern import IntArray
from diffulex_core.sampling_params import SamplingParams
from diffulex_core.sparse import SparseConfig
from diffulex_core.testing.workload import Setting, Witness
from diffulex_core.types import BoolArray, FloatArray


@attrs.define
class Halves:
    """A canvas rule: it decides the first half of a block's masks in every step.

    Attributes:
        block: length of a block.
        length: of the canvas.
    """

    block: int
    length: int
    measure: str = "prob"
    clean: bool = False

    def region(self, open: IntArray) -> Region:
        """The block that is worked on."""
        start = int(open[0]) // self.block * self.block
        return Region(start=start, end=min(start + self.block, self.length), last=False)

    def ask(self, open: IntArray) -> IntArray:
        """The block's masks."""
        return open[open < self.region(open).end]

    def choose(self, open: IntArray, asked: IntArray, tokens: IntArray, confidence: FloatArray) -> BoolArray:
        """The first half of them."""
        return np.arange(len(asked)) < (len(asked) + 1) // 2

    def left(self, open: IntArray) -> None:
        """Not known."""
        return


class CanvasWitness(CanvasRequest):
    """A canvas request that notes how often it was told that its pages are gone."""

    losses: int = 0

    def preempted(self) -> None:
        """Take note of it."""
        self.losses += 1
        super().preempted()


@attrs.frozen(kw_only=True)
class CanvasAsk:
    """One canvas.

    Attributes:
        prompt: its tokens.
        length: masks behind it.
        scale: of classifier-free guidance; 0 = none.
        block: length of the blocks that it is decided in.
        sparse: the cache between its full passes.
    """

    prompt: tuple[int, ...]
    length: int
    scale: float = 0.0
    block: int = 8
    sparse: SparseConfig | None = None

    def make(self, setting: Setting, request_id: int) -> Witness:
        """The request, fresh."""
        return CanvasWitness(
            request_id=request_id,
            prompt=np.array(self.prompt, dtype=np.int64),
            params=SamplingParams(temperature=0.0, ignore_eos=True, sparse=self.sparse),
            context=setting.context,
            options=CanvasOptions(gen_length=self.length, cfg_scale=self.scale),
            length=self.length,
            rule=Halves(block=self.block, length=self.length),
        )
