"""Operations that have several implementations, chosen by name when an engine is assembled."""
