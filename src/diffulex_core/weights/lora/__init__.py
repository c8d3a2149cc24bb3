"""LoRA adapters in peft's format, merged into the weights or beside them."""

from diffulex_core.weights.lora.load import AdapterReport, load_adapter, warn_of_another_base

__all__ = ["AdapterReport", "load_adapter", "warn_of_another_base"]
