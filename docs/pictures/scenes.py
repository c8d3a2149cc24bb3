"""The examples that are drawn: one for each strategy."""

from __future__ import annotations

from diffulex_core.sparse import SparseConfig
from docs.pictures.masks import Panel, Scene
from docs.pictures.scripted import Example

SCENES = (
    Scene(
        name="multi_bd",
        title="Visibility under multi_bd",
        description="Every row sees all keys up to the end of its own block, in the prefill and afterwards.",
        example=Example(strategy="multi_bd", script=("a.....", "ab.d..", "abcd..")),
        panels=(
            Panel(forward=0, head="Prefill", words="the prompt's blocks and, behind them, the first masks"),
            Panel(
                forward=2,
                head="Decode",
                words="the complete block is stored, and the one behind it denoised, in one forward",
            ),
        ),
    ),
    Scene(
        name="d2f",
        title="Visibility under d2f",
        description="In the prefill the prompt sees itself and nothing else; what follows is block-causal.",
        example=Example(strategy="d2f", script=("a.....", "ab.d..", "abcd..")),
        panels=(
            Panel(forward=0, head="Prefill", words="prompt rows see all of the prompt and nothing else"),
            Panel(forward=2, head="Decode", words="block-causal; prompt tokens that share a block with the answer too"),
        ),
    ),
    Scene(
        name="edit",
        title="What edit sampling asks",
        description="Block-causal visibility; every row of an active block is asked, decided or not.",
        example=Example(strategy="multi_bd", mode="edit", script=("ax.d..", "ab.d..", "abcd..", "abcd..")),
        panels=(
            Panel(forward=1, head="While tokens change", words="decided rows are asked like masks"),
            Panel(forward=3, head="The first block is settled", words="it is stored and not asked any more"),
        ),
    ),
    Scene(
        name="dmax",
        title="What dmax asks",
        description="Block-causal visibility; every row of an active block is asked, decided or not.",
        example=Example(strategy="dmax", mode="edit", script=("a.", "ab", "abcd", "abcdef")),
        panels=(
            Panel(forward=1, head="While tokens change", words="decided rows are fed blends and asked again"),
            Panel(forward=2, head="The first block is settled", words="it is stored as it was fed"),
        ),
    ),
    Scene(
        name="fast_dllm_v2",
        title="The dual cache of fast_dllm_v2",
        description="Full passes feed a block, refining ones a sub-block beside stale neighbours, commits the block.",
        example=Example(
            strategy="fast_dllm_v2",
            shifted=True,
            prompt_len=8,
            script=("a", "ab", "abcd", "abcdefgh", "abcdefghi"),
        ),
        panels=(
            Panel(forward=1, head="Full pass", words="the whole block; what it stores is for the moment"),
            Panel(forward=2, head="Refining pass", words="the sub-block alone, beside what the full pass left"),
            Panel(forward=4, head="Commit", words="the complete block for good; its last row starts the next"),
        ),
    ),
    Scene(
        name="diffusion_gemma",
        title="Visibility under diffusion_gemma",
        description="Encoder rows are causal and stored; a canvas sees everything encoded and all of itself.",
        example=Example(
            strategy="diffusion_gemma", prompt_len=5, windows=(None, 4), script=("abcd", "abcd", "....efgh")
        ),
        blocks=(5, 4),
        panels=(
            Panel(forward=0, head="First step", words="the prompt is encoded"),
            Panel(forward=1, head="Steps after it", words="the canvas alone"),
            Panel(forward=2, head="The next canvas", words="the accepted one is encoded"),
            Panel(forward=2, head="The same, sliding layer", words="with a window of 4", kind=1),
        ),
    ),
    Scene(
        name="llada_canvas",
        title="Visibility under llada_canvas",
        description="Every row sees every other; the masks of the current block are asked; guidance masks the prompt.",
        example=Example(
            strategy="llada_canvas",
            options={"block_length": 4, "steps": 4, "cfg_scale": 1.0},
            params={"gen_length": 8},
            script=("a.c.", "a.c."),
        ),
        blocks=(6, 4),
        panels=(
            Panel(forward=1, head="Every step", words="all of it is fed; masks of the first block are asked"),
            Panel(forward=1, sequence=1, head="With guidance", words="beside it, the same with the prompt masked"),
        ),
    ),
    Scene(
        name="dream_canvas",
        title="Visibility under dream_canvas",
        description="Every row sees every other; any mask may be decided, each by the row before it.",
        example=Example(
            strategy="dream_canvas",
            shifted=True,
            options={"steps": 4, "alg": "maskgit_plus"},
            params={"gen_length": 8},
            script=("..c..f..", "..c..f..", "a.c..f.h", "abcdefgh"),
        ),
        blocks=(6, 8),
        panels=(
            Panel(
                forward=1,
                head="Early",
                words="all of it is fed and every mask asked; Dream's rows predict the position after them",
            ),
            Panel(forward=3, head="Late", words="all of it is fed all the same, and fewer masks are asked"),
        ),
    ),
    Scene(
        name="sparse_cache",
        title="The sparse cache of fixed-length generation",
        description="A full pass keeps the K/V that the block looks at most; later steps feed the block beside them.",
        example=Example(
            strategy="llada_canvas",
            options={"block_length": 4, "steps": 8},
            params={"gen_length": 8, "sparse": SparseConfig(retention_ratio=0.5)},
            script=("a...", "ab..", "abc.", "abcd"),
        ),
        blocks=(6, 4),
        panels=(
            Panel(forward=1, head="Refresh", words="all of it is fed; half of what is outside the block is kept"),
            Panel(forward=2, head="Reuse", words="the block alone, beside what was kept"),
        ),
    ),
)
