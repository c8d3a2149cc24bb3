"""Decoding strategy dmax for diffulex: decided positions are fed blends of embeddings and revised."""
