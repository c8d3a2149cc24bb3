"""dLLM-Serve's calls: the shape of its results, and answers that are those of the engine."""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import pytest
import torch

from diffulex import SamplingParams, SparseConfig
from diffulex.compat import LLM
from diffulex_core.errors import EngineClosed, InvalidSamplingParams
from diffulex_core.types import CompletionReason
from tests.integration.engines import CHECKPOINT, EOS, engine, prompt

PARAMS = SamplingParams(temperature=0, gen_length=12, steps=4)


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(str(CHECKPOINT), max_num_seqs=8, max_logprobs=64, log_optimize_level=2, num_pages=64) as ready:
        yield ready


def test_results_are_dicts_in_the_order_of_the_prompts(llm: LLM) -> None:
    prompts = [prompt(4), prompt(9, salt=1)]
    outputs = llm.generate(prompts, PARAMS, use_tqdm=False)
    with engine(decoding_strategy="llada_canvas") as plain:
        answers = [
            plain.generate(each, SamplingParams(temperature=0, ignore_eos=True, gen_length=12, steps=4))[0]
            for each in prompts
        ]
    assert [output["token_ids"] for output in outputs] == [list(answer.token_ids) for answer in answers]
    assert all(len(output["token_ids"]) == 12 for output in outputs)
    assert all(set(output) == {"text", "token_ids", "full_text"} for output in outputs)


def test_defaults_are_those_of_dllm_serve(llm: LLM) -> None:
    config = llm.engine.config
    assert config.schedule.max_num_reqs == 8
    assert config.schedule.max_logits_tokens == 64
    [output] = llm.generate([prompt(3)], [SamplingParams(temperature=0)], use_tqdm=False)
    assert len(output["token_ids"]) == 128


def test_keys_of_dllm_serve_mean_here_what_they_do_there(caplog: pytest.LogCaptureFixture) -> None:
    keys = {"torch_device": torch.device("cpu"), "eos": -1, "max_num_seqs": 3, "max_logprobs": 32}
    with LLM(str(CHECKPOINT), num_kvcache_blocks=4, kvcache_block_size=512, log_optimize_level=0, **keys) as ready:
        config = ready.engine.config
    assert config.cache.num_pages * config.cache.page_size == 4 * 512
    assert config.parallel.device == "cpu"
    assert config.model.eos_token_ids == (EOS,)
    assert (config.schedule.max_num_reqs, config.schedule.max_logits_tokens) == (3, 32)
    [warning] = [record.getMessage() for record in caplog.records if "no effect" in record.getMessage()]
    assert warning.startswith("log_optimize_level=0 has no effect here: logits are always made of the sampled rows")
    assert "is ignored" not in caplog.text


def test_the_size_of_its_pages_alone_changes_nothing(llm: LLM) -> None:
    with LLM(str(CHECKPOINT), kvcache_block_size=256, num_kvcache_blocks=-1, torch_device=None, num_pages=64) as ready:
        assert ready.engine.config == attrs.evolve(
            llm.engine.config,
            schedule=attrs.evolve(llm.engine.config.schedule, max_num_reqs=512, max_logits_tokens=1024),
        )


def test_presets_of_dllm_serve_are_run_by_its_calls(llm: LLM) -> None:
    [output] = llm.generate([prompt(4)], llm.engine.preset("factual"), use_tqdm=False)
    assert len(output["token_ids"]) == 64


def test_a_text_is_cut_at_the_first_end_token_and_kept_whole_beside_it(llm: LLM) -> None:
    [whole] = llm.generate([prompt(5)], PARAMS, use_tqdm=False)
    end = whole["token_ids"][4]
    first = whole["token_ids"].index(end)
    with LLM(str(CHECKPOINT), eos_token_ids=[end], num_pages=64) as other:
        [cut] = other.generate([prompt(5)], PARAMS, use_tqdm=False)
        text = other.engine.tokenizer.decode(whole["token_ids"][:first], skip_special_tokens=True)
    assert cut["token_ids"] == whole["token_ids"]
    assert cut["full_text"] == whole["full_text"]
    assert cut["text"] == text != whole["text"]


def test_whatever_ends_a_text_first_ends_it_and_every_request_runs_its_whole_canvas(llm: LLM) -> None:
    [whole] = llm.generate([prompt(5)], PARAMS, use_tqdm=False)
    ids = whole["token_ids"]
    ends = sorted({ids[3], ids[7]}, key=ids.index, reverse=True)
    with LLM(str(CHECKPOINT), eos_token_ids=ends, num_pages=64) as other:
        [cut] = other.generate([prompt(5)], PARAMS, use_tqdm=False)
        text = other.engine.tokenizer.decode(ids[: min(map(ids.index, ends))], skip_special_tokens=True)
        other.add_request(prompt(5), PARAMS)
        finished = []
        while not other.is_finished():
            finished += other.step()[0]
    assert cut["text"] == text
    assert cut["token_ids"] == ids
    assert [canvas for _, canvas in finished] == [ids]


def test_a_stop_string_is_no_part_of_a_text_even_where_it_begins_inside_a_token(llm: LLM) -> None:
    [answer] = llm.engine.generate([prompt(5)], attrs.evolve(PARAMS, ignore_eos=True))
    kept = llm._output(attrs.evolve(answer, text=answer.text[:2], completion_reason=CompletionReason.STOP_STRING))
    assert kept["text"] == answer.text[:2]
    assert llm._output(answer)["text"] == answer.text


def test_a_single_prompt_is_a_list_of_one(llm: LLM) -> None:
    for one in ("hello", prompt(5)):
        assert llm.generate(one, PARAMS, use_tqdm=False) == llm.generate([one], PARAMS, use_tqdm=False)


def test_a_prompt_that_cannot_be_served_says_why_and_the_others_are_answered(llm: LLM) -> None:
    bad, good = llm.generate([[], prompt(4)], PARAMS, use_tqdm=False)
    assert bad["error"].startswith("EmptyPrompt")
    assert bad["token_ids"] == []
    assert len(good["token_ids"]) == 12


def test_requests_can_be_stepped_by_hand(llm: LLM) -> None:
    ids = [llm.add_request(prompt(4 + 3 * at), PARAMS) for at in range(3)]
    finished, counts = [], []
    while not llm.is_finished():
        done, count = llm.step()
        finished += done
        counts.append(count)
    assert sorted(request for request, _ in finished) == ids
    assert counts == [-3] * 4
    assert llm.step() == ([], 0)


def test_lists_of_unequal_length_are_refused(llm: LLM) -> None:
    with pytest.raises(InvalidSamplingParams, match="1 prompts but 2"):
        llm.generate([prompt(3)], [PARAMS, PARAMS], use_tqdm=False)
    with pytest.raises(InvalidSamplingParams, match="1 prompts but 2 sparse configurations"):
        llm.generate([prompt(3)], PARAMS, sparse_configs=[SparseConfig(), None], use_tqdm=False)
    with pytest.raises(InvalidSamplingParams, match="2 prompts but 3 sampling parameters"):
        llm.generate([prompt(3), prompt(4)], [PARAMS] * 3, [None] * 2, use_tqdm=False)
    with pytest.raises(InvalidSamplingParams, match="neither SamplingParams nor a list of them"):
        llm.generate([prompt(3)], [{"temperature": 0}], use_tqdm=False)  # type: ignore[list-item]


def test_a_sparse_cache_is_for_one_prompt_or_for_all(llm: LLM) -> None:
    prompts, sparse = [prompt(9), prompt(9)], SparseConfig(retention_ratio=0.3, default_block_len=6)
    one = [output["token_ids"] for output in llm.generate(prompts, PARAMS, [sparse, None], use_tqdm=False)]
    both = [output["token_ids"] for output in llm.generate(prompts, PARAMS, sparse, use_tqdm=False)]
    none = [output["token_ids"] for output in llm.generate(prompts, PARAMS, use_tqdm=False)]
    assert one == [both[0], none[1]]
    assert both[0] != none[0]
    fields = {"retention_ratio": 0.3, "default_block_len": 6}
    assert [output["token_ids"] for output in llm.generate(prompts, PARAMS, fields, use_tqdm=False)] == both
    for strange in (True, "memory"):
        with pytest.raises(InvalidSamplingParams, match="give a SparseConfig, a dict or None"):
            llm.generate(prompts, PARAMS, strange, use_tqdm=False)  # type: ignore[arg-type]
    llm.add_request(prompt(9), attrs.evolve(PARAMS, sparse=attrs.evolve(sparse, enabled=False)), sparse)
    finished = []
    while not llm.is_finished():
        done, _ = llm.step()
        finished += done
    assert [tokens for _, tokens in finished] == both[:1]


def test_after_exit_it_is_closed() -> None:
    other = LLM(str(CHECKPOINT), num_pages=64)
    other.exit()
    other.exit()
    with pytest.raises(EngineClosed):
        other.generate([prompt(3)], PARAMS, use_tqdm=False)
