"""The kit against broken implementations, and the first-party plugins against the kit."""
