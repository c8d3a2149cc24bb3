"""Decoding with shifted logits: every way in which a block's first position gets the row before it.

The oracle recomputes the whole sequence in every step and takes row `i - 1` for position `i`; nothing of ours is in it.
"""

from __future__ import annotations

import json
from pathlib import Path

import attrs
import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from diffulex_core.attention.cpu import TorchCPU
from diffulex_core.blocks import BlockRequest
from diffulex_core.context import BuildContext
from diffulex_core.distributed import Communicator
from diffulex_core.host import Host
from diffulex_core.kv_store import KVStore
from diffulex_core.runner import EagerRunner
from diffulex_core.sampling import PackedSampler
from diffulex_core.testing.thread_group import ThreadGroup
from diffulex_core.weights import load_weights
from diffulex_dream import oracle
from diffulex_dream.config import TINY_DREAM, TINY_REASONER
from diffulex_dream.model import build_dream
from diffulex_dream.weights import DREAM
from tests.core.checkpoints import MASK_ID, VOCAB_SIZE
from tests.core.forward import CPU
from tests.core.oracles import Setting
from tests.core.serving import Service, context_of, pattern_of
from tests.families.oracle_decoding import VOCABULARY, Decoding, greedy, prompt_tokens, setting_of
from tests.families.standard_checkpoints import standard_tensors, write_checkpoint

HOST = Host.discover(["diffulex-dream", "diffulex-multibd"], environ={})
BLOCK = 4
MULTI_BD = setting_of(block_size=BLOCK, shifted=True)
D2F = setting_of(block_size=BLOCK, full_prefix=True, shifted=True)
EACH_STRATEGY = pytest.mark.parametrize("setting", [MULTI_BD, D2F], ids=["multi_bd", "d2f"])


@pytest.fixture(scope="module")
def dream(tmp_path_factory: pytest.TempPathFactory) -> Decoding:
    config = {**TINY_DREAM, **VOCABULARY}
    checkpoint = write_checkpoint(
        tmp_path_factory.mktemp("dream"), config, standard_tensors(config, 11, qkv_bias=True), files=2
    )
    return _decoding(checkpoint.folder, oracle.qwen2(checkpoint.config, checkpoint.tensors), MULTI_BD)


def _decoding(folder: Path, network: PreTrainedModel, setting: Setting) -> Decoding:
    return Decoding(folder=folder, oracle=network, host=HOST, setting=setting)


@pytest.mark.parametrize("buffer_size", [1, 2, 3])
@EACH_STRATEGY
def test_answers_take_the_oracles_tokens_forwards_and_rows(dream: Decoding, setting: Setting, buffer_size: int) -> None:
    """Prompts that end inside a block have the row in the window; behind a stored block it is carried over."""
    case = attrs.evolve(dream, setting=attrs.evolve(setting, buffer_size=buffer_size))
    with case.engine() as engine:
        for length in (1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 2):
            prompt = prompt_tokens(length, salt=length)
            [answer] = engine.generate(prompt, greedy(22))
            expected = case.expected(prompt, 22)
            assert answer.token_ids == expected.tokens
            assert tuple(step.rows for step in answer.trajectory) == expected.rows


def test_an_oracle_without_the_shift_answers_otherwise(dream: Decoding) -> None:
    aligned = attrs.evolve(dream, setting=attrs.evolve(MULTI_BD, shifted=False))
    assert aligned.expected(prompt_tokens(9), 20).tokens != dream.expected(prompt_tokens(9), 20).tokens


def test_a_prompt_fed_in_pieces_leaves_its_last_row(dream: Decoding) -> None:
    prompt = prompt_tokens(6 * BLOCK)
    with dream.engine(max_num_batched_tokens=3 * BLOCK) as engine:
        [answer] = engine.generate(prompt, greedy(13))
    assert [step.rows for step in answer.trajectory][:3] == [3 * BLOCK, 3 * BLOCK, BLOCK]
    dream.check([answer], [prompt], 13)


@pytest.mark.parametrize("length", [2 * BLOCK, 2 * BLOCK + 1, 4 * BLOCK])
@pytest.mark.parametrize("page_blocks", [1, 2])
def test_a_cached_prompt_that_ends_on_a_block_boundary_costs_one_row(
    dream: Decoding, length: int, page_blocks: int
) -> None:
    prompts = [prompt_tokens(length)] * 2
    with dream.engine(page_size=BLOCK * page_blocks) as engine:
        answers = [engine.generate(prompt, greedy(13))[0] for prompt in prompts]
    cold, warm = answers
    held = length // (BLOCK * page_blocks) * BLOCK * page_blocks
    assert (cold.cached_tokens, warm.cached_tokens) == (0, held)
    expected = dream.expected(prompts[0], 13).rows
    assert warm.trajectory[0].rows == expected[0] - held + (held == length)
    assert tuple(step.rows for step in warm.trajectory[1:]) == expected[1:]
    dream.check(answers, prompts, 13)


def test_the_next_turn_of_a_conversation_starts_behind_a_cached_answer(dream: Decoding) -> None:
    first = prompt_tokens(2 * BLOCK)
    with dream.engine() as engine:
        [answer] = engine.generate(first, greedy(5 * BLOCK))
        turn = [*first, *answer.token_ids[: 2 * BLOCK]]
        [reply] = engine.generate(turn, greedy(9))
    assert reply.cached_tokens == len(turn)
    dream.check([answer], [first], 5 * BLOCK)
    dream.check([reply], [turn], 9)


@pytest.mark.parametrize("prefix_caching", [True, False])
@EACH_STRATEGY
def test_a_preempted_request_goes_on_with_the_row_that_it_had(
    dream: Decoding, setting: Setting, prefix_caching: bool
) -> None:
    case = attrs.evolve(dream, setting=setting)
    prompts = [prompt_tokens(length, salt) for salt, length in enumerate((8, 8, 9, 4))]
    caching = {} if setting.full_prefix else {"enable_prefix_caching": prefix_caching}
    with case.engine(num_pages=12, **caching) as engine:
        answers = engine.generate(prompts, [greedy(24)] * 4)
    assert sum(answer.preemptions for answer in answers) > 0
    case.check(list(answers), prompts, 24)


@EACH_STRATEGY
def test_requests_that_share_steps_answer_as_they_do_alone(dream: Decoding, setting: Setting) -> None:
    case = attrs.evolve(dream, setting=setting)
    prompts = [prompt_tokens(length, salt) for salt, length in enumerate((1, 8, 3, 12, 7, 8))]
    prompts[5] = prompts[1]
    with case.engine(max_num_batched_tokens=24, max_num_reqs=4) as engine:
        answers = engine.generate(prompts, [greedy(14)] * len(prompts))
    case.check(list(answers), prompts, 14)


def test_a_step_needs_room_for_the_row_before_a_block(dream: Decoding) -> None:
    with dream.engine(max_num_batched_tokens=2 * BLOCK, max_model_len=8 * BLOCK) as engine:
        [refused] = engine.generate([prompt_tokens(8)], greedy(12))
    assert "Set it to at least 9" in (refused.error or "")
    with dream.engine(max_num_batched_tokens=2 * BLOCK + 1, max_model_len=8 * BLOCK) as engine:
        prompts = [prompt_tokens(8)] * 3
        dream.check(list(engine.generate(prompts, [greedy(12)] * 3)), prompts, 12)


def test_each_of_several_processes_keeps_rows_of_its_own(dream: Decoding) -> None:
    """Two ranks run the same plans over half of each layer; pages are so few that requests are preempted."""
    prompts = [prompt_tokens(length, salt) for salt, length in enumerate((8, 8, 9, 4))]

    def rank(tp: Communicator) -> list[list[int]]:
        config = json.loads((dream.folder / "config.json").read_text())
        network = build_dream(config, BuildContext(dtype=torch.float32, device=torch.device("meta"), tp=tp))
        load_weights(network, DREAM, dream.folder, config, dtype=torch.float32, device=CPU, progress=False)
        service = Service.of(MULTI_BD, num_pages=12, page_size=BLOCK)
        runner = EagerRunner(
            model=network,
            sampler=PackedSampler(vocab_size=VOCAB_SIZE, forbidden=frozenset({MASK_ID}), tp=tp),
            pattern=pattern_of(MULTI_BD),
            backend=TorchCPU(),
            kv_store=KVStore.allocate(network.kv_geometry, 12, BLOCK, torch.float32, CPU),
            page_size=BLOCK,
            device=CPU,
        )
        context = context_of(MULTI_BD)
        requests = [
            BlockRequest(request_id=number, prompt=np.array(prompt), params=greedy(24), context=context)
            for number, prompt in enumerate(prompts)
        ]
        for request in requests:
            service.scheduler.add(request)
        while (plan := service.scheduler.schedule()) is not None:
            service.scheduler.update(plan, runner.execute(plan))
        return [request.output_tokens.tolist() for request in requests]

    expected = [list(dream.expected(prompt, 24).tokens) for prompt in prompts]
    assert ThreadGroup(2).run(rank) == [expected, expected]


@pytest.mark.parametrize("buffer_size", [1, 3])
def test_dream_reasoner_decodes_block_causally_without_a_shift(tmp_path: Path, buffer_size: int) -> None:
    config = {**TINY_REASONER, **VOCABULARY}
    checkpoint = write_checkpoint(tmp_path, config, standard_tensors(config, 5, qk_norm=True), files=2)
    network = oracle.qwen3(checkpoint.config, checkpoint.tensors)
    case = _decoding(tmp_path, network, setting_of(block_size=BLOCK, buffer_size=buffer_size))
    prompts = [prompt_tokens(length) for length in (1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 2)]
    with case.engine() as engine:
        assert engine.config.family.name == "dream_reasoner"
        case.check(list(engine.generate(prompts, [greedy(14)] * len(prompts))), prompts, 14)
