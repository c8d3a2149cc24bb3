"""LLaDA's fixed-length generation: the strategy llada_canvas."""
