"""The block-buffer runtime: requests that denoise a few blocks at a time and commit them in order."""

from diffulex_core.blend_columns import BlendColumns
from diffulex_core.blocks.grid import (
    BlockGrid,
    GridAnswers,
    GridVerdict,
    JointRule,
    PerBlock,
    numbers_of,
    write_numbers,
)
from diffulex_core.blocks.request import BlockRequest
from diffulex_core.blocks.revising import revise_alone
from diffulex_core.blocks.rule import BlockRule, Fill, Outcome, RuleOfKind, proposals, revision
from diffulex_core.blocks.state import BlockState, BlockTable

__all__ = [
    "BlendColumns",
    "BlockGrid",
    "BlockRequest",
    "BlockRule",
    "BlockState",
    "BlockTable",
    "Fill",
    "GridAnswers",
    "GridVerdict",
    "JointRule",
    "Outcome",
    "PerBlock",
    "RuleOfKind",
    "numbers_of",
    "proposals",
    "revise_alone",
    "revision",
    "write_numbers",
]
