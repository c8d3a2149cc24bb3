"""Which devices an engine's processes get, and what is said when there are too few."""

from __future__ import annotations

import pytest
import torch

from diffulex_core.devices import choose_devices, choose_dtype
from diffulex_core.distributed.torch_group import choose_library
from diffulex_core.errors import ConfigError

CPU = torch.device("cpu")


def cuda(*indices: int) -> tuple[torch.device, ...]:
    return tuple(torch.device("cuda", index) for index in indices)


@pytest.fixture(params=[0, 1, 4])
def there(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    count: int = request.param
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    return count


@pytest.mark.parametrize("processes", [1, 2, 5])
def test_processes_share_the_cpu(there: int, processes: int) -> None:
    assert choose_devices("cpu", (), processes) == (CPU,) * processes


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_auto_takes_the_first_cuda_devices_or_else_the_cpu(there: int, processes: int) -> None:
    if there == 0:
        assert choose_devices("auto", (), processes) == (CPU,) * processes
    elif there >= processes:
        assert choose_devices("auto", (), processes) == cuda(*range(processes))
    else:
        with pytest.raises(ConfigError, match=rf"wanted for {processes} processes.* torch sees {there} CUDA device,"):
            choose_devices("auto", (), processes)


def test_device_ids_are_taken_in_their_order(there: int) -> None:
    if there == 4:
        assert choose_devices("cuda:3", (3, 1), 2) == cuda(3, 1)
        assert choose_devices("auto", (3, 1, 2), 2) == cuda(3, 1)
        assert choose_devices("cuda", (2,), 1) == cuda(2)
    else:
        with pytest.raises(ConfigError, match="device cuda:3 is wanted, but torch sees"):
            choose_devices("auto", (3, 1), 2)


def test_one_device_is_named_by_its_number_and_several_are_not(there: int) -> None:
    if there == 4:
        assert choose_devices("cuda:2", (), 1) == cuda(2)
        with pytest.raises(ConfigError, match=r"cuda:2 is wanted for 2 processes.*device_ids"):
            choose_devices("cuda:2", (), 2)
    else:
        with pytest.raises(ConfigError, match="device cuda:2 is wanted, but torch sees"):
            choose_devices("cuda:2", (), 1)


@pytest.mark.parametrize(
    ("wanted", "device", "library"),
    [
        ("auto", "cpu", "gloo"),
        ("auto", "cuda", "nccl"),
        ("gloo", "cpu", "gloo"),
        ("gloo", "cuda", "gloo"),
        ("nccl", "cuda", "nccl"),
    ],
)
def test_the_communication_library_follows_the_device(wanted: str, device: str, library: str) -> None:
    assert choose_library(wanted, torch.device(device)) == library


def test_nccl_does_not_serve_the_cpu() -> None:
    with pytest.raises(ConfigError, match=r"'nccl' connects CUDA devices.*distributed_backend='auto' or 'gloo'"):
        choose_library("nccl", CPU)


def test_dtype_auto_is_the_checkpoints_except_on_the_cpu() -> None:
    assert choose_dtype("auto", {"dtype": "float16"}, CPU) is torch.float32
    assert choose_dtype("auto", {"torch_dtype": "float16"}, torch.device("cuda")) is torch.float16
    assert choose_dtype("auto", {}, torch.device("cuda")) is torch.bfloat16
    stated = {"dtype": None, "torch_dtype": "torch.float16"}
    assert choose_dtype("auto", stated, torch.device("cuda")) is torch.float16
    assert choose_dtype("float16", {"dtype": "bfloat16"}, CPU) is torch.float16
