"""The LLaDA family for diffulex."""
