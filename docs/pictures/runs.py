"""The answers that are shown filling up."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from diffulex import SamplingParams
from diffulex_core.host import Host
from docs.pictures.moments import of_engine, of_script
from docs.pictures.scripted import Example
from docs.pictures.timelines import Film, Timeline

PROMPT = (
    "Q: A shop has 13 tickets. It buys 26 more in the morning and sells 8 in the evening. "
    "How many tickets does the shop have now?"
)
LONG_PROMPT = (
    "Q: Eva has 29 oranges, buys 7 more, drops 9, loses 17, buys 10 more and loses 7. How many oranges are left?"
)
LONG_PART = slice(66, 82)
"""The block of its answer that is shown."""
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
        title="Tokens that are replaced",
        description="A block of an answer of tiny/llada2, decided at once: filled only, and under edit sampling.",
        films=(
            _block('sampling_mode="naive"', "what is decided stays: the next block follows two mistakes", host),
            _block(
                'sampling_mode="edit"',
                "the network is asked again, and corrects both; the block is stored once nothing changes",
                host,
                sampling_mode="edit",
            ),
        ),
    )
    yield Timeline(
        name="dmax-steps",
        title="Tokens that are replaced, and stored at once",
        description="The same block of an answer of tiny/llada2 under dmax: a sure block is stored without one.",
        films=(
            _block(
                'decoding_strategy="dmax"',
                "decided tokens may change in every forward; the block is stored once all of it is sure",
                host,
                decoding_strategy="dmax",
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


def _block(head: str, words: str, host: Host, **options: str) -> Film:
    """A block of 16 tokens of the long answer, accepted at half of certainty."""
    settings: dict[str, Any] = {"decoding_strategy": "multi_bd", "block_size": 16, "page_size": 32, "buffer_size": 1}
    moments = of_engine(
        LONG_PROMPT,
        SamplingParams(temperature=0, max_tokens=128),
        host=host,
        margin=MARGIN,
        model="tiny/llada2",
        part=LONG_PART,
        accept_threshold=0.5,
        **{**settings, **options},
    )
    return Film(head=head, words=words, moments=tuple(moments), block=None)
