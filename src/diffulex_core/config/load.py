"""The thin layer around `resolve` that reads the disk: checkpoint, tokenizer and config file."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from diffulex_core.checkpoint import read_generation_config, read_json_config
from diffulex_core.config.engine_config import EngineConfig
from diffulex_core.config.layers import ConfigFile, read_config_file, user_layers
from diffulex_core.config.resolve import resolve
from diffulex_core.config.schema import build_schema, core_sections
from diffulex_core.config.settle import given_text
from diffulex_core.config.tables import command_tables, without_tables, without_variables
from diffulex_core.errors import ConfigError
from diffulex_core.sources import resolve_model

if TYPE_CHECKING:
    from diffulex_core.host import Host


@attrs.frozen(kw_only=True, eq=False)
class LoadedConfig:
    """A configuration and what was read to resolve it.

    Attributes:
        config: the configuration.
        folder: the checkpoint's directory.
        checkpoint: parsed config.json.
        tokenizer: the checkpoint's tokenizer, or the one at tokenizer_path.
        adapter: the LoRA adapter's directory; None without one.
    """

    config: EngineConfig
    folder: Path
    checkpoint: Mapping[str, Any]
    tokenizer: Any
    adapter: Path | None = None


def load_config(
    model: str | None,
    options: Mapping[str, object],
    *,
    host: Host,
    config_file: Path | ConfigFile | None = None,
    environ: Mapping[str, str] | None = None,
    strict: bool = False,
    given_by: str = "the caller",
) -> LoadedConfig:
    """Read what `resolve` needs, and resolve.

    Args:
        model: directory or name; None = as config file, environment or options say.
        environ: variables that may set keys; None = none.
        options, host, config_file, strict, given_by: as for `resolve`.
    Raises:
        ConfigError: the configuration cannot be used, or the config file cannot be read.
        CheckpointError: config.json or the tokenizer cannot be read, or no source has the model or the adapter.
        UnknownNameError: no model source knows the model.
    """
    from diffulex_core.tokenizer import eos_ids_from_tokenizer, load_tokenizer, mask_id_from_tokenizer, token_ids

    file = read_config_file(config_file) if isinstance(config_file, Path) else config_file
    schema = build_schema(core_sections())
    others = command_tables(host, schema.titles)
    file = None if file is None else without_tables(file, others)
    environ = without_variables(environ or {}, others)
    given = dict(options) if model is None else {**options, "model": model}
    layers = user_layers(schema, given, config_file=file, environ=environ, strict=strict, given_by=given_by)
    name, _ = given_text(layers, "model", schema)
    if name is None:
        raise ConfigError(["No model is named. Give a checkpoint directory, or a name such as tiny/llada."])
    tokenizer_path, _ = given_text(layers, "tokenizer_path", schema)
    folder = resolve_model(name, host)
    checkpoint = read_json_config(folder)
    tokenizer_folder = folder if tokenizer_path is None else Path(tokenizer_path)
    tokenizer = load_tokenizer(tokenizer_folder, partial(_tokenizer_class, host))
    config = resolve(
        model,
        options,
        host=host,
        checkpoint=checkpoint,
        generation_config=read_generation_config(folder),
        tokenizer_mask_id=mask_id_from_tokenizer(tokenizer_folder, tokenizer),
        tokenizer_eos_ids=eos_ids_from_tokenizer(tokenizer),
        tokenizer_tokens=token_ids(tokenizer),
        config_file=file,
        environ=environ,
        strict=strict,
        given_by=given_by,
    )
    adapter = resolve_model(config.lora.lora_path, host) if config.lora.use_lora else None
    return LoadedConfig(config=config, folder=folder, checkpoint=checkpoint, tokenizer=tokenizer, adapter=adapter)


def _tokenizer_class(host: Host, name: str) -> Any:
    """What a family's plugin reads tokenizers of the class `name` with, or None."""
    for family in host.models:
        if name in family.tokenizer_classes:
            provenance = host.models.entry(family.name).provenance
            return host.load(family.tokenizer_classes[name], provenance=provenance)
    return None
