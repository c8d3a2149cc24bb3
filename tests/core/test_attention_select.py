"""Which attention backend an engine gets, and when it is refused."""

from __future__ import annotations

import sys
from types import ModuleType

import attrs
import pytest
import torch

from diffulex_core.attention import AttentionCase, probe_backends, select_backend
from diffulex_core.attention.cpu import TorchCPU
from diffulex_core.attention.reference import TorchReference
from diffulex_core.attention.triton.backend import PagedTriton
from diffulex_core.errors import IncompatibleError, UnknownNameError
from diffulex_core.hookspecs import Register
from diffulex_core.host import Host
from diffulex_core.plugin import AttentionBackendPlugin, hookimpl


def case(device_type: str = "cpu", *, num_heads: int = 4, num_kv_heads: int = 2) -> AttentionCase:
    return AttentionCase(
        device_type=device_type,
        dtype=torch.float32,
        head_dim=8,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        page_size=8,
        block_size=4,
    )


def only_even_pages(wanted: AttentionCase) -> list[str]:
    return [] if wanted.page_size % 16 == 0 else ["pages must hold a multiple of 16 slots", "it has bad days"]


class Picky(TorchReference):
    """A fast backend of somebody else's that serves little."""


@pytest.fixture
def host() -> Host:
    return Host.discover([], environ={})


@pytest.fixture
def host_with_picky() -> Host:
    plugin = ModuleType("picky_plugin")

    @hookimpl
    def diffulex_register_attention(register: Register[AttentionBackendPlugin]) -> None:
        name = f"{__name__}:"
        register(AttentionBackendPlugin(name="picky", impl=name + "Picky", probe=name + "only_even_pages", priority=99))

    vars(plugin)["diffulex_register_attention"] = diffulex_register_attention
    return Host.discover(environ={}, plugins=["picky_plugin"], extra=[plugin])


def test_auto_takes_the_fused_path_on_the_cpu(host: Host) -> None:
    assert isinstance(select_backend("auto", host, case()), TorchCPU)


def test_auto_falls_to_the_next_backend_that_has_no_reason_against_the_case(host: Host) -> None:
    assert isinstance(select_backend("auto", host, case("cuda")), PagedTriton)
    assert isinstance(select_backend("auto", host, attrs.evolve(case("cuda"), head_dim=513)), TorchReference)
    with pytest.raises(IncompatibleError, match=r"cannot serve.*head_dim is 513, and it serves at most 512"):
        select_backend("triton_grouped", host, attrs.evolve(case("cuda"), head_dim=513))


def test_probes_are_asked_one_after_the_other_until_one_can_serve(host: Host) -> None:
    before = set(sys.modules)
    select_backend("auto", host, case())
    assert not any(name.split(".")[0] == "triton" for name in set(sys.modules) - before)


def test_triton_serves_the_cpu_in_its_interpreter_only(host: Host) -> None:
    with pytest.raises(IncompatibleError, match=r"'triton'.*not on 'cpu'; TRITON_INTERPRET=1 lets the CPU interpret"):
        select_backend("triton", host, case())


def test_the_public_alias_naive_is_the_reference(host: Host) -> None:
    assert isinstance(select_backend("naive", host, case()), TorchReference)


def test_a_named_backend_that_cannot_serve_is_an_error_with_its_reason_and_never_a_fallback(host: Host) -> None:
    with pytest.raises(IncompatibleError, match=r"'torch_cpu' cannot serve.*'cuda'.*that can: triton, torch_ref"):
        select_backend("torch_cpu", host, case("cuda"))


def test_all_reasons_of_a_named_backend_are_listed(host_with_picky: Host) -> None:
    with pytest.raises(IncompatibleError, match=r"multiple of 16 slots; it has bad days.*torch_cpu, torch_ref"):
        select_backend("picky", host_with_picky, case())


def test_a_backend_must_serve_the_heads_of_every_layer(host: Host, host_with_picky: Host) -> None:
    assert isinstance(select_backend("auto", host, case(), case(num_kv_heads=1)), TorchCPU)
    with pytest.raises(IncompatibleError, match="4 query heads cannot share 3") as raised:
        select_backend("torch_ref", host, case(), case(num_kv_heads=3))
    assert "that can" not in str(raised.value)
    with pytest.raises(IncompatibleError) as raised:
        select_backend("picky", host_with_picky, case(), case(num_kv_heads=1))
    assert str(raised.value).count("it has bad days") == 1


def test_when_nobody_can_serve_auto_lists_the_reasons_of_all(host: Host) -> None:
    with pytest.raises(IncompatibleError) as raised:
        select_backend("auto", host, case(num_heads=5, num_kv_heads=2))
    assert len(raised.value.problems) == 4
    assert all("5 query heads cannot share 2" in problem for problem in raised.value.problems)


def test_an_unknown_backend_is_an_unknown_name(host: Host) -> None:
    with pytest.raises(UnknownNameError, match=r"torch_cpuu.*torch_ref"):
        select_backend("torch_cpuu", host, case())


def test_probes_are_listed_by_priority(host_with_picky: Host) -> None:
    found = probe_backends(host_with_picky, case())
    assert list(found) == ["picky", "torch_cpu", "triton", "flash", "torch_ref"]
    assert [bool(reasons) for reasons in found.values()] == [True, False, True, True, False]
