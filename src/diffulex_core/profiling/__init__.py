"""Where the time of a step goes: its stages, recordings by the torch profiler, and tables of both."""
