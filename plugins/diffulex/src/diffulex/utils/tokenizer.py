"""Loading a checkpoint's tokenizer without remote code, and decoding with it."""

from diffulex_core.tokenizer import decode, load_tokenizer

__all__ = ["decode", "load_tokenizer"]
