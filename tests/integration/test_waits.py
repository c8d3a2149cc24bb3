"""In a step the host waits for the device once: when the decisions are copied."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

from diffulex_core.hookspecs import Register
from diffulex_core.host import Host
from diffulex_core.plugin import Component, hookimpl
from diffulex_core.sampling_params import SamplingParams
from diffulex_core.testing.engines import Asked, engines, serve
from diffulex_core.testing.generate import subjects_for
from diffulex_core.testing.reference import plugin as reference
from diffulex_core.testing.subjects import EngineSubject


def far_plugin() -> ModuleType:
    """A plugin that registers the executor that counts."""
    plugin = ModuleType("far_plugin")

    @hookimpl
    def diffulex_register_components(register: Register[Component]) -> None:
        register(Component(kind="executor", name="far_beside", factory="tests.core.far_runner:far_beside"))

    vars(plugin)["diffulex_register_components"] = diffulex_register_components
    return plugin


HOST = Host.discover(extra=[far_plugin(), reference])
SUBJECTS = {
    (subject.strategy.strategy.name, subject.strategy.mode): subject
    for plugin in ("sdar", "llada", "multibd", "dream", "gemma", "dmax", "fastdllm")
    for subject in subjects_for(plugin, HOST)
    if isinstance(subject, EngineSubject) and not subject.strategy.strategy.name.startswith("kit_")
}
"""An engine of every strategy and mode; the last family that has it is taken."""
GREEDY = {"temperature": 0.0, "max_tokens": 5, "ignore_eos": True, "seed": 3}


def test_every_strategy_is_looked_at() -> None:
    names = {entry.descriptor.name for entry in HOST.strategies.entries()}
    assert {name for name, _ in SUBJECTS} == {name for name in names if not name.startswith("kit_")}


def serve_far(strategy: tuple[str, str], *given: dict[str, Any], **settings: Any) -> None:
    """Serve a request for each set of parameters by the executor that counts."""
    with engines(SUBJECTS[strategy]) as made:
        asked = [
            Asked(prompt=made.prompt(3 + 5 * index, index), params=SamplingParams(**{**GREEDY, **each}))
            for index, each in enumerate(given)
        ]
        serve(made.open(executor="far_beside", **settings), asked)


@pytest.mark.parametrize("strategy", SUBJECTS, ids=" ".join)
def test_a_step_waits_for_its_decisions_alone(strategy: tuple[str, str]) -> None:
    serve_far(strategy, {}, {"temperature": 0.8, "top_p": 0.9})


def test_nothing_that_a_request_may_ask_of_the_sampler_waits() -> None:
    limited, biased = {"temperature": 0.7, "top_k": 5, "min_p": 0.01}, {"logit_bias": {7: 2.0, 9: -50.0}}
    measures = {"confidence": "neg_entropy"}, {"confidence": "margin"}
    serve_far(("multi_bd", "naive"), limited, biased, {"logprobs": 3}, *measures, {})
    serve_far(("diffusion_gemma", "naive"), {**limited, **biased, "logprobs": 1})


def test_parts_of_the_head_guidance_and_sparse_canvases_wait_no_more() -> None:
    canvas = {"gen_length": 8, "block_length": 4, "steps": 4}
    serve_far(("llada_canvas", "naive"), {**canvas, "cfg_scale": 0.5}, canvas, max_logits_tokens=4)
    settings = {"sparse.enabled": True, "sparse.delay_step": 1, "sparse.default_block_len": 4}
    serve_far(("llada_canvas", "naive"), canvas, **settings)
