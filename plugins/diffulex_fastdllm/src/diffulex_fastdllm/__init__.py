"""Fast-dLLM v2 for diffulex."""
