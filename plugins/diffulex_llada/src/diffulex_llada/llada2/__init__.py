"""LLaDA2: mini and flash, versions 2.0 and 2.1, and DMax."""
