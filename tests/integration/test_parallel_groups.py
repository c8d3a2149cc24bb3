"""Groups of more than two processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from diffulex_core.distributed.torch_group import listen
from diffulex_core.engine import Diffulex
from diffulex_core.sampling_params import SamplingParams
from tests.families.subjects import PLAIN, Subject, host
from tests.families.test_family_engines import checkpoint
from tests.integration.engines import engine, prompt, vectors

pytestmark = pytest.mark.slow

MEMBER = """
import sys, torch
from diffulex_core.distributed.torch_group import Rendezvous, join

rank, address, port = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
meeting = Rendezvous(address=address, port=port, size=3, backend="gloo", timeout=30)
group = join(meeting, rank, torch.device("cpu"), int(sys.argv[4]) if rank == 0 else None)
assert (group.rank, group.size) == (rank, 3)

# (1 + 2**-24) rounds to 1 and (2**-24 + 2**-24) does not vanish: only one order gives these bits.
terms = torch.tensor([1.0, 2.0**-24, 2.0**-24])
for width in (1, 7, 1000):
    total = group.sum(torch.full((2, width), terms[rank].item()))
    assert (total == 1.0).all(), "not summed in rank order"
    assert (group.sum(torch.full((2, width), terms[(rank + 1) % 3].item())) > 1.0).all()
for dtype in (torch.float64, torch.bfloat16, torch.float16, torch.int64):
    assert (group.sum(torch.full((3,), rank + 1, dtype=dtype)) == 6).all()

values = torch.tensor([rank, -rank, torch.nan if rank == 1 else 0.0])
highest = group.max(values.clone())
assert highest[:2].tolist() == [2, 0] and highest[2].isnan()

for dtype in (torch.float32, torch.bfloat16, torch.int64, torch.bool):
    mine = torch.arange(6).remainder(rank + 2).reshape(2, 3).T.to(dtype)
    everyone = group.gather(mine)
    assert everyone.dtype == dtype and everyone.shape == (3, 3, 2)
    for other in range(3):
        assert torch.equal(everyone[other], torch.arange(6).remainder(other + 2).reshape(2, 3).T.to(dtype))
group.close()
group.close()
"""


def test_three_processes_sum_in_rank_order_take_the_maximum_and_gather() -> None:
    listener, address, port = listen("localhost", 0)
    with listener:
        shared = listener.fileno()
        members = [
            subprocess.Popen(
                [sys.executable, "-c", MEMBER, str(rank), address, str(port), str(shared)],
                stderr=subprocess.PIPE,
                text=True,
                pass_fds=(shared,) if rank == 0 else (),
            )
            for rank in range(3)
        ]
    errors = [member.communicate(timeout=120)[1] for member in members]
    assert [member.returncode for member in members] == [0, 0, 0], "\n".join(errors)


def test_four_ranks_that_hold_two_key_value_heads_twice_reproduce_the_recorded_tokens() -> None:
    recording = vectors("llada2-b3")
    cases = recording["cases"]
    params = [SamplingParams(**recording["sampling"], max_tokens=len(case["tokens"])) for case in cases]
    settings = {**recording["config"], "device": "cpu", "tensor_parallel_size": 4}
    with engine(recording["checkpoint"], **settings) as group:
        answers = group.generate([case["prompt"] for case in cases], params)
    assert [list(answer.token_ids) for answer in answers] == [case["tokens"] for case in cases]


def test_two_replicas_of_two_ranks_reproduce_the_recorded_tokens() -> None:
    recording = vectors("llada-d2f")
    cases = recording["cases"]
    params = [SamplingParams(**recording["sampling"], max_tokens=len(case["tokens"])) for case in cases]
    settings = {**recording["config"], "device": "cpu", "tensor_parallel_size": 2, "data_parallel_size": 2}
    with engine(recording["checkpoint"], **settings) as group:
        answers = group.generate([case["prompt"] for case in cases], params)
    assert [list(answer.token_ids) for answer in answers] == [case["tokens"] for case in cases]


SERVED = {"dream": "d2f", "fast_dllm_v2": "multi_bd", "llada2": "multi_bd", "sdar_moe": "multi_bd"}
"""Shifted logits, a tied head, experts, key/value heads of their own width."""


@pytest.mark.parametrize("subject", [each for each in PLAIN if each.name in SERVED], ids=str)
def test_two_ranks_of_a_family_answer_as_one_process_does(subject: Subject, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "decoding_strategy": SERVED[subject.name], "block_size": 4, "page_size": 8, "buffer_size": 3, "num_pages": 16,
        "max_num_reqs": 3, "max_num_batched_tokens": 128, "max_model_len": 96, "device": "cpu",
    }  # fmt: skip
    folder = checkpoint(subject, tmp_path)
    prompts = [prompt(length, salt) for salt, length in enumerate([9, 20, 33, 5, 14, 40, 20, 7])]
    asked = [
        SamplingParams(
            temperature=0.8 * (salt % 3), top_p=1 - 0.2 * (salt % 2), top_k=20 if salt > 4 else None,
            logit_bias={65: 3.0, 200: 2.0}, max_tokens=10 + 3 * salt, seed=salt,
        )
        for salt in range(len(prompts))
    ]  # fmt: skip
    with Diffulex(folder, host=host(), **options) as one:
        wanted = one.generate(prompts, asked)
    with Diffulex(folder, host=host(), tensor_parallel_size=2, **options) as two:
        found = two.generate(prompts, asked)
    assert [answer.token_ids for answer in found] == [answer.token_ids for answer in wanted]
    assert sum(answer.preemptions for answer in found) > 0
