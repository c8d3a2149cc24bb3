"""Engines with the strategy fast_dllm_v2 against a decoder of transformers' Qwen2 that keeps every K/V by hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import Qwen2ForCausalLM

from diffulex_core.engine import Diffulex
from diffulex_core.host import Host
from diffulex_core.outputs import ReqTrajectory
from diffulex_core.sampling_params import SamplingParams
from diffulex_core.types import CompletionReason
from diffulex_fastdllm.config import TINY
from diffulex_fastdllm.oracle import hf_reference
from tests.core.checkpoints import EOS_ID, MASK_ID
from tests.core.oracles import Answer, Ask
from tests.families.oracle_decoding import VOCABULARY, greedy, prompt_tokens
from tests.families.oracle_dual_cache import DualSetting, NetworkMemory, decode_dual_cache
from tests.families.standard_checkpoints import standard_tensors, write_checkpoint

HOST = Host.discover(["diffulex-fastdllm", "diffulex-multibd"], environ={})
CONFIG = {**TINY, **VOCABULARY, "bd_size": 8}
LENGTHS = (1, 7, 8, 9, 13, 16, 21)
TOKENS = 19


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fastdllm")
    write_checkpoint(folder, CONFIG, standard_tensors(CONFIG, 4, qkv_bias=True))
    return folder


@pytest.fixture(scope="module")
def oracle() -> Qwen2ForCausalLM:
    return hf_reference(CONFIG, standard_tensors(CONFIG, 4, qkv_bias=True))


def engine(folder: Path, **options: Any) -> Diffulex:
    """Sub-blocks of 4 tokens, two to a block."""
    settings = {
        "buffer_size": 2,
        "page_size": 8,
        "accept_threshold": 0.5,
        "max_model_len": 96,
        "num_pages": 96,
        **options,
    }
    return Diffulex(folder, host=HOST, strict=True, **settings)


@pytest.fixture(scope="module")
def ready(folder: Path) -> Iterator[Diffulex]:
    with engine(folder) as ready:
        yield ready


def expected(
    oracle: Qwen2ForCausalLM,
    prompt: Sequence[int],
    *,
    max_tokens: int = TOKENS,
    use_block_cache: bool = True,
    accept: float = 0.5,
    ignore_eos: bool = True,
) -> tuple[Answer, list[str]]:
    setting = DualSetting(
        sub_size=4,
        sub_blocks=2,
        use_block_cache=use_block_cache,
        mask=MASK_ID,
        eos=frozenset({EOS_ID}),
        max_model_len=96,
        accept=accept,
    )
    ask = Ask(prompt=tuple(prompt), seed=0, max_tokens=max_tokens, ignore_eos=ignore_eos)
    return decode_dual_cache(setting, ask, NetworkMemory(oracle, MASK_ID))


def tokens(answers: Sequence[ReqTrajectory]) -> list[tuple[int, ...]]:
    return [answer.token_ids for answer in answers]


def prompts(count: int = len(LENGTHS)) -> list[list[int]]:
    return [prompt_tokens(length, salt=length) for length in LENGTHS[:count]]


@pytest.mark.parametrize("use_block_cache", [True, False])
@pytest.mark.parametrize("accept", [0.3, 0.8])
def test_answers_take_the_oracles_tokens_forwards_and_rows(
    folder: Path, oracle: Qwen2ForCausalLM, use_block_cache: bool, accept: float
) -> None:
    modes: list[str] = []
    with engine(
        folder, fdv2_use_block_cache=use_block_cache, accept_threshold=accept, enable_prefix_caching=False
    ) as ready:
        for prompt in prompts():
            [answer] = ready.generate(prompt, greedy(TOKENS))
            wanted, its_modes = expected(oracle, prompt, use_block_cache=use_block_cache, accept=accept)
            assert answer.token_ids == wanted.tokens
            assert tuple(step.rows for step in answer.trajectory) == wanted.rows
            modes += its_modes
    assert set(modes) == {"seed", "full", "commit"} | ({"refine"} if use_block_cache else set())


def test_without_the_block_cache_nothing_is_ever_stale(folder: Path, oracle: Qwen2ForCausalLM) -> None:
    """A decoder that computes the whole sequence anew in every step gives the same tokens."""
    for prompt in prompts():
        plain = decode_without_any_cache(oracle, prompt, TOKENS)
        assert plain == expected(oracle, prompt, use_block_cache=False)[0].tokens


def decode_without_any_cache(oracle: Qwen2ForCausalLM, prompt: Sequence[int], count: int) -> tuple[int, ...]:
    sequence = list(prompt)
    while len(sequence) < len(prompt) + count:
        at = len(sequence)
        block_end, sub_end = at - at % 8 + 8, at - at % 4 + 4
        if at % 8 == 0:
            sequence.append(whole_sequence(oracle, sequence)(at - 1, at)[0])
            continue
        filled = sequence + [MASK_ID] * (block_end - at)
        while MASK_ID in filled[at:sub_end]:
            decide = whole_sequence(oracle, filled)
            open_ = [position for position in range(at, sub_end) if filled[position] == MASK_ID]
            choices = {position: decide(position - 1, position) for position in open_}
            sure = [position for position in open_ if choices[position][1] > 0.5]
            for position in sure or [max(open_, key=lambda position: (choices[position][1], -position))]:
                filled[position] = choices[position][0]
        sequence = filled[:sub_end]
    return tuple(sequence[len(prompt) : len(prompt) + count])


def whole_sequence(oracle: Qwen2ForCausalLM, sequence: Sequence[int]) -> Any:
    """What the rows of the last block decide, every block before it computed with nothing behind it."""
    memory = NetworkMemory(oracle, MASK_ID)
    for start in range(0, len(sequence), 8):
        decide = memory.feed(sequence[start : start + 8], start, start + 8, 0)
    return decide


def test_block_cache_and_threshold_change_answers(oracle: Qwen2ForCausalLM) -> None:
    def answers(**options: Any) -> list[tuple[int, ...]]:
        return [expected(oracle, prompt, **options)[0].tokens for prompt in prompts()]

    assert answers() != answers(use_block_cache=False)
    assert answers() != answers(accept=0.05)


def test_a_batch_answers_as_each_prompt_alone(ready: Diffulex, oracle: Qwen2ForCausalLM) -> None:
    together = ready.generate(prompts(), greedy(TOKENS))
    assert tokens(list(together)) == [expected(oracle, prompt)[0].tokens for prompt in prompts()]


@pytest.mark.parametrize(
    "options",
    [{"page_size": 4}, {"page_size": 32}, {"max_num_batched_tokens": 8}, {"max_num_batched_tokens": 19}],
    ids=lambda options: "-".join(f"{name}={value}" for name, value in options.items()),
)
def test_page_sizes_and_budgets_change_nothing(folder: Path, oracle: Qwen2ForCausalLM, options: dict[str, int]) -> None:
    with engine(folder, **options) as other:
        answers = other.generate([*prompts(), prompts()[-1]], greedy(TOKENS))
    wanted = [expected(oracle, prompt)[0].tokens for prompt in prompts()]
    assert tokens(list(answers)) == [*wanted, wanted[-1]]


def test_a_prefix_hit_answers_as_a_miss(folder: Path, oracle: Qwen2ForCausalLM) -> None:
    with engine(folder) as fresh:
        for length in (8, 16, 21):
            prompt = prompt_tokens(length, salt=3)
            miss, hit = (fresh.generate(prompt, greedy(TOKENS))[0] for _ in range(2))
            assert hit.cached_tokens == length // 8 * 8
            assert miss.token_ids == hit.token_ids == expected(oracle, prompt)[0].tokens
            assert hit.trajectory[0].rows == (1 if length % 8 == 0 else 8)


def test_a_preempted_answer_without_block_cache_is_the_same(folder: Path, oracle: Qwen2ForCausalLM) -> None:
    with engine(folder, num_pages=9, fdv2_use_block_cache=False) as small:
        answers = small.generate(prompts(), greedy(TOKENS))
    assert sum(answer.preemptions for answer in answers) > 0
    assert tokens(list(answers)) == [expected(oracle, prompt, use_block_cache=False)[0].tokens for prompt in prompts()]


def test_preempted_answers_with_block_cache_are_whole(folder: Path) -> None:
    with engine(folder, num_pages=9) as small:
        answers = small.generate(prompts(), greedy(TOKENS))
    assert sum(answer.preemptions for answer in answers) > 0
    for answer in answers:
        assert len(answer.token_ids) == TOKENS
        assert MASK_ID not in answer.token_ids


def test_draws_depend_on_the_seed_only_and_a_blocks_first_token_is_greedy(ready: Diffulex) -> None:
    params = [SamplingParams(temperature=5.0, seed=seed, max_tokens=12, ignore_eos=True) for seed in (1, 2, 3)]
    prompt = prompt_tokens(8, salt=8)
    [cold] = ready.generate([prompt], greedy(1))
    together = ready.generate([prompt] * 3, params)
    assert tokens(list(together)) == [ready.generate(prompt, each)[0].token_ids for each in params]
    assert {answer.token_ids[0] for answer in together} == set(cold.token_ids)
    assert len({answer.token_ids for answer in together}) == 3


def test_the_answer_ends_before_the_end_token_and_at_a_stop_string(ready: Diffulex, oracle: Qwen2ForCausalLM) -> None:
    prompt = prompt_tokens(9, salt=9)
    free = expected(oracle, prompt)[0].tokens
    stop = next(token for token in free[5:] if token not in free[:5])
    [ended] = ready.generate(prompt, SamplingParams(temperature=0, max_tokens=TOKENS, stop_token_ids=(stop,)))
    assert ended.completion_reason is CompletionReason.STOP_TOKEN
    assert ended.token_ids == free[: free.index(stop)]
    assert ended.nfe < ready.generate(prompt, greedy(TOKENS))[0].nfe


@pytest.mark.parametrize("max_nfe", [1, 3, 5])
def test_an_end_by_forwards_gives_the_decided_prefix(ready: Diffulex, oracle: Qwen2ForCausalLM, max_nfe: int) -> None:
    prompt = prompt_tokens(13, salt=13)
    [answer] = ready.generate(
        prompt, SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True, max_nfe=max_nfe)
    )
    assert (answer.nfe, answer.completion_reason) == (max_nfe, CompletionReason.NFE_LIMIT)
    assert answer.token_ids == expected(oracle, prompt)[0].tokens[: len(answer.token_ids)]


def test_an_aborted_request_returns_its_prefix_and_frees_its_pages(folder: Path, oracle: Qwen2ForCausalLM) -> None:
    prompt = prompt_tokens(13, salt=13)
    with engine(folder, num_pages=12) as ready:
        records: list[ReqTrajectory] = []
        request = ready.add_request(prompt, greedy(60), deliver=records.append)
        for _ in range(6):
            ready.step()
        assert ready.abort_request(request)
        [record] = records
        assert record.completion_reason is CompletionReason.ABORTED
        assert record.token_ids == expected(oracle, prompt)[0].tokens[: len(record.token_ids)]
        assert ready.generate(prompt, greedy(60))[0].token_ids[:TOKENS] == expected(oracle, prompt)[0].tokens


def test_a_trace_shows_the_masks_of_every_sub_block(folder: Path) -> None:
    with engine(folder, save_trace=True) as ready:
        short, long = ready.generate([prompt_tokens(9, salt=9), prompt_tokens(13, salt=9)], greedy(10))
    masks = [
        [(block.block_id, block.num_mask_tokens, block.progress) for block in answer.trajectory[0].block_trace]
        for answer in (short, long)
    ]
    assert masks == [[(2, 3, 0.25), (3, 4, 0.0)], [(2, 0, 1.0), (3, 3, 0.25)]]


def test_every_token_is_told_with_its_log_probability(ready: Diffulex) -> None:
    for answer in ready.generate(prompts(), SamplingParams(temperature=0.0, max_tokens=TOKENS, logprobs=1)):
        assert answer.logprobs is not None
        for token, told in zip(answer.token_ids, answer.logprobs, strict=True):
            assert told is not None
            assert told.top == ((token, told.logprob),)


def test_two_ranks_decide_as_one(folder: Path, oracle: Qwen2ForCausalLM) -> None:
    with engine(folder, tensor_parallel_size=2, device="cpu") as pair:
        answers = pair.generate(prompts(4), greedy(TOKENS))
    assert tokens(list(answers)) == [expected(oracle, prompt)[0].tokens for prompt in prompts(4)]


def test_the_former_strategy_stays_possible(folder: Path) -> None:
    with engine(folder, decoding_strategy="multi_bd") as other:
        assert len(other.generate(prompts(1), greedy(5))[0].token_ids) == 5
