"""State machines of hypothesis that put a component through random histories; subclass one, or run it as it is."""

from diffulex_core.testing.machines.kv_cache import kv_cache_machine
from diffulex_core.testing.machines.scheduler import scheduler_machine

__all__ = ["kv_cache_machine", "scheduler_machine"]
