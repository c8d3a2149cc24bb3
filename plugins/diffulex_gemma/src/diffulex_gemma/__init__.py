"""DiffusionGemma for diffulex."""
