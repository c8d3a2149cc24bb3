"""Groups of processes as values: nothing here is global, and a group of one costs nothing."""

from diffulex_core.distributed.communicator import ALONE, Communicator, Seat

__all__ = ["ALONE", "Communicator", "Seat"]
