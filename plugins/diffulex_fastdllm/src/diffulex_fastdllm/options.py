"""The strategy's own configuration keys; importing this imports no torch."""

from __future__ import annotations

from typing import Literal

import attrs

from diffulex_core.plugin import key

GraphMode = Literal["full", "sub", "commit"]


@attrs.frozen(kw_only=True)
class DualCacheOptions:
    """Keys of the strategy fast_dllm_v2."""

    fdv2_use_block_cache: bool = key(
        True,
        "Recompute only the current sub-block between two passes over its whole block, beside the neighbours' keys and "
        "values of the last one; false = every pass computes the whole block.",
        aliases=("use_block_cache",),
        generation_config=("use_block_cache",),
    )
    fdv2_graph_modes: tuple[GraphMode, ...] = key(
        ("full", "sub", "commit"),
        "Passes that may run as graphs.",
        built=False,
        why="graphs are kept by numbers of rows and know no passes; enforce_eager=True turns all of them off",
    )
