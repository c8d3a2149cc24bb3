"""SDAR, SDAR-MoE and Stable-DiffCoder for diffulex."""
