"""What the engine and its worker processes say to each other over their pipes."""

from __future__ import annotations

import pickle
import traceback
from typing import TYPE_CHECKING, Any, Literal

import attrs

from diffulex_core.errors import WorkerError

if TYPE_CHECKING:
    import torch

    from diffulex_core.distributed.torch_group import Rendezvous
    from diffulex_core.worker import Blueprint

Method = Literal["capacity", "allocate", "execute", "start_profile", "stop_profile"]

Manifest = tuple[tuple[str, str, str], ...]
"""(plugin, dist, version) of every loaded plugin, sorted."""


@attrs.frozen(kw_only=True)
class Greeting:
    """First message to a worker: nothing in it needs a plugin to be read.

    Attributes:
        replica, rank: which worker it is.
        manifest: the plugins of the engine.
    """

    replica: int
    rank: int
    manifest: Manifest


@attrs.frozen(kw_only=True, eq=False)
class Assignment:
    """Second message: what the worker loads.

    Attributes:
        blueprint: what to build.
        device: where.
        meeting: how to find the other ranks; None = there are none.
        listener: descriptor of the socket on which this rank keeps the group's store, inherited; None = it does not.
        sharers: processes of the engine that share the device's memory.
        threads: threads of this process's computations; None = torch's own choice.
        progress: show a progress bar while weights are loaded.
    """

    blueprint: Blueprint
    device: torch.device
    meeting: Rendezvous | None
    listener: int | None
    sharers: int
    threads: int | None
    progress: bool


@attrs.frozen(kw_only=True, eq=False)
class Call:
    """A method of `Worker` to call. `serial` is repeated in the answer; loading is call 0."""

    serial: int
    method: Method
    arguments: tuple[Any, ...] = ()


@attrs.frozen(kw_only=True, eq=False)
class Answer:
    """What a call returned; None from ranks other than the first."""

    serial: int
    value: Any = None


@attrs.frozen(kw_only=True, eq=False)
class Failure:
    """What a call raised.

    Attributes:
        serial: of the call.
        error: the error, pickled.
        trace: its traceback, as text.
    """

    serial: int
    error: bytes
    trace: str

    @classmethod
    def of(cls, serial: int, error: Exception, *, replica: int, rank: int) -> Failure:
        """An error on its way to another process; one that would change there becomes a `WorkerError` with its text."""
        data = _faithful(error)
        if data is None:
            text = f"Worker rank {rank} failed: {type(error).__name__}: {error}"
            data = pickle.dumps(WorkerError(text, rank=rank, replica=replica))
        return cls(serial=serial, error=data, trace="".join(traceback.format_exception(error)))

    def raised(self, worker: str) -> Exception:
        """The error, with the traceback of the process called `worker` as a note."""
        error: Exception = pickle.loads(self.error)
        error.add_note(f"Raised in {worker}:\n{self.trace}")
        return error


def _faithful(error: Exception) -> bytes | None:
    """The error, pickled; None where unpickling would not give it back."""
    try:
        data = pickle.dumps(error)
        copy = pickle.loads(data)
        same = type(copy) is type(error) and str(copy) == str(error)
    except Exception:  # noqa: BLE001 - a stranger's error may raise anything when it is pickled
        return None
    return data if same else None
