"""The configuration: frozen sections, one resolution, and who set what. Importing it imports no torch."""

from diffulex_core.config.convert import Text
from diffulex_core.config.engine_config import EngineConfig, structure, unstructure
from diffulex_core.config.keys import GroupInfo, KeyInfo, Origin, group, key
from diffulex_core.config.layers import ConfigFile, read_config_file
from diffulex_core.config.resolve import resolve
from diffulex_core.config.schema import KeySpec, Schema
from diffulex_core.config.sections import (
    AttentionSection,
    CacheSection,
    DecodingSection,
    LoraSection,
    ModelSection,
    ParallelSection,
    ProfilerConfig,
    RuntimeSection,
    ScheduleSection,
)

__all__ = [
    "AttentionSection",
    "CacheSection",
    "ConfigFile",
    "DecodingSection",
    "EngineConfig",
    "GroupInfo",
    "KeyInfo",
    "KeySpec",
    "LoraSection",
    "ModelSection",
    "Origin",
    "ParallelSection",
    "ProfilerConfig",
    "RuntimeSection",
    "ScheduleSection",
    "Schema",
    "Text",
    "group",
    "key",
    "read_config_file",
    "resolve",
    "structure",
    "unstructure",
]
