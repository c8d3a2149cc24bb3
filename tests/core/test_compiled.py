"""torch.compile: the compiled network computes what the network does, and keys choose how forwards run."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException

from diffulex_core.config import EngineConfig
from diffulex_core.context import ForwardContext
from diffulex_core.distributed import ALONE
from diffulex_core.errors import ConfigError
from diffulex_core.graphs import EagerForward, Graphs, Limits, Rerun, StaticForward
from diffulex_core.graphs.choose import choose_forward, limits_of
from diffulex_core.graphs.compiled import CompiledNetwork, require_compiler
from diffulex_core.graphs.forward import Network
from diffulex_core.host import Host
from diffulex_core.testing.forward import DenseAttention, Memory, context, network_of
from diffulex_core.testing.generate import family_subject
from diffulex_core.testing.reference import plugin as reference
from diffulex_core.testing.sequences import PAGE, Pass, pages_for, passes, scattered
from diffulex_core.testing.views import BLOCK_CAUSAL
from diffulex_core.types import StepPlan
from tests.core.config_kit import configure

CPU = torch.device("cpu")


def nothing(input_ids: Tensor, positions: Tensor, ctx: ForwardContext) -> Tensor:
    """A network that is never called."""
    raise AssertionError("nobody calls it")


def test_a_compiled_network_computes_what_the_network_does_step_after_step() -> None:
    host = Host.discover(extra=[reference], environ={})
    subject = family_subject(host.models.entry(reference.FAMILY), host)
    assert subject is not None
    network, draw, compiled = network_of(subject), Random(0), list[object]()

    def watched(module: Any) -> Any:
        compiled.append(module)
        return torch.compile(module, backend="eager", dynamic=False, fullgraph=True)

    static = StaticForward(
        network=nothing,
        graphs=Rerun(),
        limits=Limits(decode_rows=64, prefill_rows=0, pages=24),
        captured=CompiledNetwork(network, watched),
    )
    tried, trusted = (Memory.of(network, 24, PAGE) for _ in range(2))
    for number, count in enumerate((2, 1, 2)):
        made = passes(network, BLOCK_CAUSAL, draw, count)
        tables, _ = scattered([pages_for(len(each.tokens)) for each in made], draw)
        whole = [Pass(tokens=each.tokens, cut=0, view=BLOCK_CAUSAL) for each in made]
        fed = [each.second(table) for each, table in zip(whole, tables, strict=True)]
        ids = [token for each in fed for token in each.tokens]
        positions = [position for each in fed for position in each.positions]
        padding = -len(ids) % 8
        inputs = torch.tensor(ids + [0] * padding), torch.tensor(positions + [0] * padding)
        told = [context(network, memory, fed, backend=DenseAttention(), padding=padding) for memory in (tried, trusted)]
        with torch.inference_mode():
            hidden, how = static(StepPlan(step=number, windows=()), *inputs, told[0])
            assert torch.equal(hidden[: len(ids)], network(*inputs, told[1])[: len(ids)])
        assert how != "eager"
    assert compiled == [network]
    for one, other in zip((*tried.keys, *tried.values), (*trusted.keys, *trusted.values), strict=True):
        assert torch.equal(one, other)


BARE = ForwardContext(
    slots=torch.zeros(2, dtype=torch.int64), key_pages=(), value_pages=(), batches=(), backend=DenseAttention()
)


def refusal(network: Network, mode: str, **options: Any) -> ConfigError:
    """What is said when a network cannot be compiled."""
    compiled = CompiledNetwork(network, partial(torch.compile, **options), mode=mode)
    with pytest.raises(ConfigError, match="enable_cudagraph_torch_compile=False") as caught:
        compiled(torch.ones(2), torch.arange(2), BARE)
    return caught.value


def test_what_a_backend_cannot_compile_is_an_error_that_names_the_keys_and_the_cause() -> None:
    def lacking(graph: object, inputs: object) -> None:
        raise NotImplementedError("no instruction\nfor this")

    error = refusal(lambda ids, positions, ctx: 2.0 * ids, "max-autotune", backend=lacking)
    assert "torch_compile_mode='max-autotune'" in str(error)
    assert "NotImplementedError: no instruction for this" in str(error)
    assert isinstance(error.__cause__, TorchDynamoException)


@pytest.mark.filterwarnings("ignore:dynamo_pgo force disabled")
def test_so_is_what_torchs_own_backend_cannot_compile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import config

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    with config.patch({"cpp.cxx": ("no-such-compiler",), "compile_threads": 1, "force_disable_caches": True}):
        error = refusal(lambda ids, positions, ctx: 2.0 * ids, "default", backend="inductor")
    assert "InductorError: " in str(error)
    assert "no-such-compiler" in str(error)


def test_code_that_cannot_be_traced_is_an_error_that_names_the_keys() -> None:
    def breaks(ids: Tensor, positions: Tensor, ctx: ForwardContext) -> Tensor:
        torch._dynamo.graph_break()
        return ids

    assert "Unsupported: " in str(refusal(breaks, "default", backend="eager", fullgraph=True))


def test_an_error_of_the_network_itself_comes_as_it_is() -> None:
    def fails(ids: Tensor, positions: Tensor, ctx: ForwardContext) -> Tensor:
        raise ZeroDivisionError("the network's own")

    compiled = CompiledNetwork(fails, partial(torch.compile, backend="eager"))
    with pytest.raises(ZeroDivisionError, match="the network's own"):
        compiled(torch.ones(2), torch.arange(2), BARE)


def test_without_a_compiler_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import cpp_builder
    from torch._inductor.exc import InvalidCxxCompiler

    def missing() -> str:
        raise InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", missing)
    with pytest.raises(ConfigError, match=r"needs a C\+\+ compiler .* install g\+\+ or clang\+\+"):
        require_compiler(CPU)


COMPILES = {"enable_cudagraph_torch_compile": True}


@pytest.mark.parametrize(
    ("keys", "graphs", "kind"),
    [
        ({}, None, EagerForward),
        ({}, Rerun(), StaticForward),
        ({"enforce_eager": True}, Rerun(), EagerForward),
        ({"enable_full_static_runner": False}, Rerun(), EagerForward),
        (COMPILES, None, StaticForward),
        ({**COMPILES, "enable_torch_compile": False}, None, EagerForward),
        ({**COMPILES, "enforce_eager": True}, None, EagerForward),
        ({**COMPILES, "enable_full_static_runner": False}, None, EagerForward),
    ],
)
def test_keys_and_device_choose_how_forwards_run(keys: dict[str, Any], graphs: Graphs | None, kind: type) -> None:
    assert type(choose_forward(nothing, configure(keys), device=CPU, tp=ALONE, graphs=graphs)) is kind


class Captures(Rerun):
    """As a GPU's graphs: replays run nothing on the host."""

    runs_host = False


@pytest.mark.parametrize(
    ("graphs", "wanted", "mode"),
    [
        (None, "reduce-overhead", "reduce-overhead"),
        (Captures(), "reduce-overhead", "default"),
        (Captures(), "max-autotune", "max-autotune-no-cudagraphs"),
        (Captures(), "default", "default"),
    ],
)
def test_what_is_captured_here_is_compiled_without_graphs_of_torchs_own(
    graphs: Graphs | None, wanted: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = list[dict[str, Any]]()

    def noted(network: Callable[..., Tensor], **options: Any) -> Callable[..., Tensor]:
        given.append(options)
        return network

    monkeypatch.setattr(torch, "compile", noted)
    config = configure({**COMPILES, "torch_compile_mode": wanted})
    choose_forward(nothing, config, device=CPU, tp=ALONE, graphs=graphs)
    assert given == [{"mode": mode, "dynamic": False}]


def limits(config: EngineConfig) -> tuple[int, int, int]:
    found = limits_of(config)
    assert found is not None
    return found.decode_rows, found.prefill_rows, found.pages


def test_limits_follow_from_the_longest_sequence_and_what_may_be_captured_of_prompts() -> None:
    keys = {"max_model_len": 100, "page_size": 8, "block_size": 4, "buffer_size": 2}
    assert limits(configure(keys)) == (1024, 0, 14)
    asked = {"prefill_cudagraph_max_len": 50}
    assert limits(configure({**keys, **asked})) == (1024, 0, 14)
    assert limits(configure({**keys, **asked, "enable_prefill_cudagraph": True})) == (1024, 56, 14)
