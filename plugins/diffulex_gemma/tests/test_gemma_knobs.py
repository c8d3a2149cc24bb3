"""Every key of the strategy: where its value comes from, what it refuses, and what it does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest

from diffulex_core.config.resolve import resolve
from diffulex_core.errors import ConfigError
from diffulex_core.host import Host
from diffulex_gemma.config import TINY
from diffulex_gemma.model import DiffusionGemma
from diffulex_gemma.options import DenoisingOptions
from tests.families.canvas_serving import Service, mild_model, options, prompt, request
from tests.families.gemma import CANVAS, load, save

HOST = Host.discover(environ={})
PUBLISHED = {
    "max_denoising_steps": 32,
    "stability_threshold": 2,
    "confidence_threshold": 0.01,
    "t_min": 0.1,
    "t_max": 0.9,
    "sampler_config": {"_cls_name": "EntropyBoundSamplerConfig", "entropy_bound": 0.25},
}
NAMES = ("max_denoising_steps", "stability_threshold", "confidence_threshold", "t_min", "t_max", "entropy_bound")


def resolved(**given: Any) -> dict[str, Any]:
    """The strategy's options by name without prefix."""
    generation = given.pop("generation_config", None)
    config = resolve("somewhere", given, host=HOST, checkpoint=dict(TINY), generation_config=generation, strict=True)
    assert isinstance(config.strategy_options, DenoisingOptions)
    values = attrs.asdict(config.strategy_options)
    return {name.removeprefix("diffusion_gemma_"): value for name, value in values.items()}


def test_unset_keys_are_those_of_the_published_code() -> None:
    found = resolved()
    assert [found[name] for name in NAMES] == [48, 1, 0.005, 0.4, 0.8, 0.1]
    assert found["shorten_last_canvas"] is False


def test_the_checkpoints_generation_config_sets_them_and_the_user_wins() -> None:
    found = resolved(generation_config=PUBLISHED)
    assert [found[name] for name in NAMES] == [32, 2, 0.01, 0.1, 0.9, 0.25]
    found = resolved(generation_config=PUBLISHED, diffusion_gemma_t_max=0.5, entropy_bound=1.0)
    assert [found[name] for name in NAMES] == [32, 2, 0.01, 0.1, 0.5, 1.0]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("max_denoising_steps", 0),
        ("stability_threshold", -1),
        ("confidence_threshold", -0.1),
        ("t_min", -0.1),
        ("t_max", float("nan")),
        ("entropy_bound", -1.0),
    ],
)
def test_a_value_out_of_bounds_is_refused_by_name(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"diffusion_gemma_{key} is .*give a number of at least"):
        resolved(**{f"diffusion_gemma_{key}": value})


def test_temperatures_that_rise_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"diffusion_gemma_t_min is 0\.9, above diffusion_gemma_t_max, which is 0\.8"):
        resolved(diffusion_gemma_t_min=0.9)
    assert resolved(diffusion_gemma_t_min=0.8)["t_min"] == 0.8


def test_a_key_is_refused_with_its_owner_where_another_strategy_is_chosen() -> None:
    with pytest.raises(ConfigError, match="belongs to strategy 'diffusion_gemma', not selected here"):
        resolve("somewhere", {"model_name": "llada", "diffusion_gemma_t_min": 0.1}, host=HOST)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> DiffusionGemma:
    folder: Path = tmp_path_factory.mktemp("gemma")
    save(mild_model(), folder)
    return load(folder)


def served(model: DiffusionGemma, **settings: Any) -> Service:
    """Four requests of two canvases each."""
    service = Service.of(model)
    rules = options(**settings)
    service.run(request(prompt(9, salt), salt, seed=salt, max_tokens=2 * CANVAS, settings=rules) for salt in range(4))
    return service


def steps(service: Service) -> int:
    return len(service.entropies())


def test_more_denoising_steps_take_more_forwards(model: DiffusionGemma) -> None:
    counts = [steps(served(model, max_denoising_steps=most, confidence_threshold=0.0)) for most in (1, 3, 7)]
    assert counts == [8, 24, 56]


def test_a_canvas_must_stay_the_same_for_longer_under_a_larger_stability_threshold(model: DiffusionGemma) -> None:
    settled = {"t_min": 0.05, "t_max": 0.1, "entropy_bound": 1.0, "confidence_threshold": 9.0}
    counts = [
        steps(served(model, stability_threshold=steady, max_denoising_steps=24, **settled)) for steady in (0, 1, 2, 3)
    ]
    assert counts[0] == 8, "always stable: one step each"
    assert counts[0] < counts[1] < counts[2] < counts[3]


def test_a_larger_confidence_threshold_ends_canvases_earlier(model: DiffusionGemma) -> None:
    counts = [
        steps(served(model, confidence_threshold=limit, stability_threshold=0, max_denoising_steps=12))
        for limit in (0.0, 0.4, 9.0)
    ]
    assert counts[0] == 96
    assert counts[0] > counts[1] > counts[2] == 8


@pytest.mark.parametrize(("low", "high"), [((0.1, 0.1), (0.1, 0.8)), ((0.1, 0.8), (0.8, 0.8))], ids=["t_max", "t_min"])
def test_higher_temperatures_leave_more_entropy(
    model: DiffusionGemma, low: tuple[float, float], high: tuple[float, float]
) -> None:
    means = [
        np.mean(served(model, t_min=t_min, t_max=t_max, confidence_threshold=0.0).entropies())
        for t_min, t_max in (low, high)
    ]
    assert means[0] < means[1]


def test_the_first_step_has_t_max_and_the_last_is_one_part_above_t_min(model: DiffusionGemma) -> None:
    service = served(model, t_min=0.2, t_max=1.0, max_denoising_steps=4, confidence_threshold=0.0)
    temperatures = [plan.windows[0].span.groups[0].temperature for plan in service.plans[:4]]
    assert temperatures == pytest.approx([1.0, 0.8, 0.6, 0.4])


def test_a_larger_entropy_bound_keeps_more_of_what_was_drawn(model: DiffusionGemma) -> None:
    kept = []
    for bound in (0.0, 1.0, 100.0):
        service = served(model, entropy_bound=bound, confidence_threshold=0.0, max_denoising_steps=3)
        kept.append(0)
        for before, after, output in zip(service.plans, service.plans[1:], service.outputs, strict=False):
            for index, window in enumerate(after.windows):
                if window.span.recall:
                    drawn = output.decisions[index].drawn  # type: ignore[attr-defined]
                    kept[-1] += int((window.span.tokens[-CANVAS:] == drawn).sum())
                    assert before.windows[index].request_id == window.request_id
    assert kept[0] < kept[1] < kept[2]
    assert kept[2] == 4 * 2 * 2 * CANVAS, "nothing is renoised"
