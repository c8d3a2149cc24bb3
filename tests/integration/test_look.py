"""Looking at requests and at the cache between steps, as servers do."""

from __future__ import annotations

import numpy as np
import pytest

from diffulex_core.config import ConfigFile
from diffulex_core.engine import Diffulex
from diffulex_core.sampling_params import SamplingParams
from tests.integration.engines import CHECKPOINT, SETTINGS, engine, host, prompt

ANSWERED = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)


def test_final_tokens_only_grow_begin_the_canvas_and_end_as_the_answer() -> None:
    with engine() as made:
        request_id = made.add_request(prompt(9), ANSWERED)
        seen: list[list[int]] = [[]]
        while not made.is_finished():
            result = made.step()
            canvas, final = made.look(request_id)
            assert canvas.tokens[: len(final)].tolist() == final.tolist()
            assert final[: len(seen[-1])].tolist() == seen[-1]
            assert np.array_equal(canvas.tokens, made.peek(request_id)[0].tokens)
            seen.append(final.tolist())
    [record] = result.finished
    assert tuple(seen[-1]) == record.token_ids
    assert len({len(each) for each in seen}) > 2


def test_a_request_that_never_was_cannot_be_looked_at() -> None:
    with engine() as made, pytest.raises(KeyError):
        made.look(0)


def test_pages_are_taken_by_a_request_and_free_when_it_ended() -> None:
    with engine() as made:
        assert made.cache_pages == (64, 64)
        request_id = made.add_request(prompt(40), ANSWERED)
        made.step()
        pages, free = made.cache_pages
        assert (pages, free) == (64, 64 - 3)
        assert made.abort_request(request_id)
        assert made.cache_pages == (64, 64)


def test_a_file_that_was_read_already_configures_an_engine() -> None:
    file = ConfigFile(name="settings.yaml", values={"cache": {"num_pages": 48}})
    settings = {name: value for name, value in SETTINGS.items() if name != "num_pages"}
    with Diffulex(CHECKPOINT, host=host(), config_file=file, strict=True, **settings) as made:
        assert made.cache_pages == (48, 48)
        assert made.vocab_size > 200
