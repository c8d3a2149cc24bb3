"""The kit's own plugin: a small family and small strategies that stand beside whatever is under test."""
