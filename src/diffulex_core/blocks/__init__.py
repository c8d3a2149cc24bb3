"""The block-buffer runtime: requests that denoise a few blocks at a time and commit them in order."""

from diffulex_core.blocks.request import BlockRequest
from diffulex_core.blocks.rule import BlockRule, Fill, Outcome, proposals, revision
from diffulex_core.blocks.state import BlockState, BlockTable

__all__ = ["BlockRequest", "BlockRule", "BlockState", "BlockTable", "Fill", "Outcome", "proposals", "revision"]
