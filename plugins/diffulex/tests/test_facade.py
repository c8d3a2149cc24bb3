"""The facade gives the core's names a public address and nothing else."""

from __future__ import annotations

import importlib

import pytest

import diffulex
from diffulex_core.engine import Diffulex
from diffulex_core.sampling_params import DecodingThresholds, SamplingParams

HOMES = {
    "diffulex.config": "diffulex_core.config",
    "diffulex.utils.checkpoint": "diffulex_core.weights",
    "diffulex.utils.loader": "diffulex_core.weights",
    "diffulex.utils.output": "diffulex_core.outputs",
    "diffulex.utils.registry": "diffulex_core.registry",
    "diffulex.utils.tokenizer": "diffulex_core.tokenizer",
}


def test_the_public_names_are_those_of_the_core() -> None:
    assert diffulex.Diffulex is Diffulex
    assert diffulex.SamplingParams is SamplingParams
    assert diffulex.DecodingThresholds is DecodingThresholds


def test_an_engine_made_through_the_facade_is_an_instance_of_a_real_class() -> None:
    assert isinstance(diffulex.Diffulex, type)


def test_every_public_name_is_listed_and_an_unknown_one_is_an_import_error() -> None:
    assert set(diffulex.__all__) <= set(dir(diffulex))
    with pytest.raises(ImportError, match="cannot import name 'Difulex'"):
        exec("from diffulex import Difulex")


@pytest.mark.parametrize("module", HOMES)
def test_a_module_of_the_facade_re_exports_names_of_one_core_module(module: str) -> None:
    address, home = importlib.import_module(module), importlib.import_module(HOMES[module])
    assert address.__all__ == sorted(address.__all__)
    for name in address.__all__:
        assert vars(address)[name] is vars(home)[name]


def test_the_configuration_is_re_exported_completely() -> None:
    assert importlib.import_module("diffulex.config").__all__ == importlib.import_module("diffulex_core.config").__all__
