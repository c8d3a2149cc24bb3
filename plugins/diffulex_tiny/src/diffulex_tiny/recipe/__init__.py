"""How the checkpoints of this package are trained: `python -m diffulex_tiny.recipe NAME`."""
