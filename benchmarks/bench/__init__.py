"""The benchmark: contenders that do the same work on the same weights take turns on one machine."""
