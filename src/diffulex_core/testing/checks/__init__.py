"""The checks, a file for each kind of subject or property; each file lists its own in `CHECKS`."""
