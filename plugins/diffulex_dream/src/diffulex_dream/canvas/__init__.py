"""Dream's fixed-length generation: the strategy dream_canvas."""
