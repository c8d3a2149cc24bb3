"""A `Communicator` over torch.distributed, and how its processes find each other."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Callable
from datetime import timedelta
from typing import Literal

import attrs
import psutil
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from diffulex_core.distributed.process import apart
from diffulex_core.errors import ConfigError, PeerLost


@attrs.frozen(kw_only=True)
class Rendezvous:
    """Where and how the processes of a group meet; it can be pickled.

    Attributes:
        address: numeric address at which the first process keeps the store.
        port: its port.
        size: processes in the group.
        backend: communication library.
        timeout: longest wait for another process, in seconds.
    """

    address: str
    port: int
    size: int
    backend: Literal["gloo", "nccl"]
    timeout: float


class TorchGroup:
    """One process's view of a torch.distributed process group.

    With gloo a sum is taken in rank order, element by element, so that its bits depend on nothing but the summands: not
    on the run, nor on what else is in the tensor. With NCCL the library chooses the order by the tensor's size. A
    maximum is NaN where any rank has NaN, with either of them.

    Every method raises `PeerLost` when another process is gone or does not come within the timeout.
    """

    def __init__(self, group: dist.ProcessGroup, *, ordered: bool) -> None:
        """`ordered` asks for sums in rank order, which cost the traffic of a gather."""
        self._group: dist.ProcessGroup | None = group
        self._ordered = ordered
        self._rank, self._size = group.rank(), group.size()

    @property
    def rank(self) -> int:
        return self._rank

    @property
    def size(self) -> int:
        return self._size

    def sum(self, x: Tensor) -> Tensor:
        if self._ordered:
            total, *others = self.gather(x).unbind()
            for other in others:
                total += other
            return total
        x = x.contiguous()
        self._together(lambda: dist.all_reduce(x, group=self._group))
        return x

    def max(self, x: Tensor) -> Tensor:
        return self.gather(x).amax(dim=0)

    def gather(self, x: Tensor) -> Tensor:
        gathered = torch.empty((self._size, *x.shape), dtype=x.dtype, device=x.device)
        x = x.contiguous()
        self._together(lambda: dist.all_gather(list(gathered.unbind()), x, group=self._group))
        return gathered

    def close(self) -> None:
        """Leave the group; this process takes part in nothing any more. Calling it again does nothing.

        Nothing may hold the group until the interpreter ends: gloo's threads would still run then, and abort it.
        """
        group, self._group = self._group, None
        if group is not None:
            dist.destroy_process_group(group)

    def _together(self, collective: Callable[[], object]) -> None:
        try:
            collective()
        except RuntimeError as error:
            raise PeerLost(f"Rank {self._rank} lost the other ranks: {error}", rank=self._rank) from error


def choose_library(wanted: str, device: torch.device) -> Literal["gloo", "nccl"]:
    """The communication library that "auto", "gloo" or "nccl" means for tensors on `device`.

    Raises:
        ConfigError: it cannot send them.
    """
    if wanted == "nccl" and device.type != "cuda":
        text = f"distributed_backend='nccl' connects CUDA devices, and the model runs on {device}."
        raise ConfigError([f"{text} Use distributed_backend='auto' or 'gloo', or device='cuda'."])
    if wanted == "gloo" or device.type != "cuda":
        return "gloo"
    return "nccl"


def listen(address: str, port: int) -> tuple[socket.socket, str, int]:
    """The socket on which the first process of a group will keep the store. It listens on `address` only.

    Args:
        address: a name or number of this machine.
        port: 0 = a free one.
    Returns:
        The socket, its numeric address, its port.
    Raises:
        ConfigError: it cannot listen there.
    """
    try:
        family, _, _, _, where = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(fileno=apart(socket.create_server(where[:2], family=family).detach()))
    except OSError as error:
        advice = "Use an address of this machine, such as localhost, and master_port=0 for a free port."
        text = f"master_addr={address!r} with master_port={port} cannot be listened on ({error}). {advice}"
        raise ConfigError([text]) from error
    return listener, *listener.getsockname()[:2]


def join(meeting: Rendezvous, rank: int, device: torch.device, listener: int | None = None) -> TorchGroup:
    """Become `rank` of a group; returns when all processes have come. A process joins one group in its life.

    Args:
        meeting: equal in all processes.
        rank: this process, from 0.
        device: where the tensors will be that it sends.
        listener: descriptor of the socket of `listen`, in the one process that keeps the store.
    Raises:
        PeerLost: the others did not come within the timeout.
    """
    if ipaddress.ip_address(meeting.address).is_loopback:
        _use_loopback(meeting.address)
    wait = timedelta(seconds=meeting.timeout)
    try:
        store = TCPStore(
            meeting.address,
            meeting.port,
            is_master=listener is not None,
            wait_for_workers=False,
            timeout=wait,
            master_listen_fd=listener,
        )
        dist.init_process_group(
            meeting.backend,
            store=store,
            rank=rank,
            world_size=meeting.size,
            timeout=wait,
            device_id=device if device.type == "cuda" else None,
        )
    except RuntimeError as error:
        raise PeerLost(f"Rank {rank} did not meet the other ranks: {error}", rank=rank) from error
    group = dist.group.WORLD
    assert group is not None
    return TorchGroup(group, ordered=meeting.backend == "gloo")


def _use_loopback(address: str) -> None:
    """Let gloo use the interface with this address, instead of the one that the host's name resolves to, if any."""
    for interface, addresses in psutil.net_if_addrs().items():
        if any(each.address == address for each in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
