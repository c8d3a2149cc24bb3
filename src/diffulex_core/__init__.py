"""The core of diffulex: protocols, plugins, configuration and the engine; no model family is in it."""

__version__ = "0.1.0"
