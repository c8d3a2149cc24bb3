"""The answers that are shown filling up."""

from __future__ import annotations

from collections.abc import Iterator

from diffulex import SamplingParams
from diffulex_core.host import Host
from docs.pictures.moments import of_engine, of_script
from docs.pictures.scripted import Example
from docs.pictures.timelines import Film, Timeline

PROMPT = (
    "Q: A shop has 13 tickets. It buys 26 more in the morning and sells 8 in the evening. "
    "How many tickets does the shop have now?"
)
MARGIN = 0.001
"""Confidences of two machines differ by less."""


def films(host: Host) -> Iterator[Timeline]:
    """All timelines."""
    greedy = SamplingParams(temperature=0, max_tokens=20)
    yield Timeline(
        name="multi_bd-steps",
        title="One block at a time, and up to four",
        description="An answer of tiny/llada in blocks of four tokens: several running blocks need fewer forwards.",
        films=tuple(
            Film(
                head=f"buffer_size={size}",
                words=words,
                moments=tuple(
                    of_engine(
                        PROMPT,
                        greedy,
                        host=host,
                        margin=MARGIN,
                        decoding_strategy="multi_bd",
                        block_size=4,
                        page_size=32,
                        buffer_size=size,
                    )
                ),
            )
            for size, words in (
                (1, "a block starts in the forward that stores the one before it"),
                (4, "a block starts once a tenth of the last one is decided"),
            )
        ),
    )
    yield Timeline(
        name="edit-steps",
        title="A token that is replaced",
        description="A scripted answer under edit sampling: a block is stored once nothing in it changes any more.",
        column=26,
        films=(
            Film(
                head='sampling_mode="edit", buffer_size=2',
                words="x becomes b once c is there; the block is stored after a forward that changes nothing",
                moments=tuple(
                    of_script(
                        Example(
                            strategy="multi_bd",
                            mode="edit",
                            prompt_len=4,
                            script=("ax......", "axc.e...", "abcde...", "abcdefg.", "abcdefgh", "abcdefgh"),
                            params={"max_tokens": 8},
                        ),
                        host,
                    )
                ),
            ),
        ),
    )
    yield Timeline(
        name="dmax-steps",
        title="Runs from the left, and a token that is replaced",
        description="A scripted answer under dmax: masks are filled from the left, decided tokens may still change.",
        column=26,
        films=(
            Film(
                head='decoding_strategy="dmax", buffer_size=2',
                words="d is sure in forward 1, but behind a mask; x becomes b although it was decided (scripted)",
                moments=tuple(
                    of_script(
                        Example(
                            strategy="dmax",
                            mode="edit",
                            prompt_len=4,
                            script=("ax.d....", "abc.ef..", "abcdefg.", "abcdefgh"),
                            params={"max_tokens": 8},
                        ),
                        host,
                    )
                ),
            ),
        ),
    )
    yield Timeline(
        name="fast_dllm_v2-steps",
        title="A block, sub-block by sub-block",
        description="A scripted answer under fast_dllm_v2: few rows between two passes over the whole block.",
        column=26,
        films=(
            Film(
                head="Sub-blocks of four, two to a block",
                words="full passes feed 8 rows, refining ones 4; forward 7 stores the block (scripted)",
                moments=tuple(
                    of_script(
                        Example(
                            strategy="fast_dllm_v2",
                            shifted=True,
                            prompt_len=8,
                            params={"max_tokens": 16},
                            script=("a", "ab", "abc", "abcd", "abcde.g.", "abcdefgh", "abcdefghi", "abcdefghij.l"),
                        ),
                        host,
                    )
                ),
            ),
        ),
    )
    yield Timeline(
        name="llada_canvas-steps",
        title="A canvas fills up",
        description="Quotas decide as many positions in every forward, a threshold whatever reaches it.",
        films=(
            Film(
                head="steps=4",
                words="a quota: three positions in every forward, wherever the network is surest (scripted)",
                block=None,
                moments=tuple(
                    of_script(
                        Example(
                            strategy="llada_canvas",
                            options={"steps": 4},
                            params={"gen_length": 12},
                            script=("ab.........l", "....e.g...k.", "...d.f..i...", "..c....h.j.."),
                        ),
                        host,
                    )
                ),
            ),
            Film(
                head='alg="confidence_threshold"',
                words="everything that reaches accept_threshold, and at least one position (tiny/llada)",
                block=None,
                moments=tuple(
                    of_engine(
                        PROMPT,
                        greedy,
                        host=host,
                        margin=MARGIN,
                        decoding_strategy="llada_canvas",
                        gen_length=20,
                        alg="confidence_threshold",
                    )
                ),
            ),
        ),
    )
