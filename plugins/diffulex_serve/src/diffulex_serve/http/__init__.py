"""The HTTP application: it works on any `EngineClient`."""
