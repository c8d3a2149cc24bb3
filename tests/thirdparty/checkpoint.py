"""A checkpoint folder without weights: `python checkpoint.py FOLDER MODULE` takes TINY of the module as config.json."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

ALPHABET = [chr(code) for code in range(ord(" "), ord("~"))]
"""A token each, by their order: ids 0 to 93."""


def write_checkpoint(folder: Path, config: Mapping[str, object]) -> Path:
    """Write config.json and a tokenizer of characters; the weights are to be `load_format="dummy"`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(dict(config)))
    tokenizer = Tokenizer(models.WordLevel({text: index for index, text in enumerate(ALPHABET)}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


if __name__ == "__main__":
    write_checkpoint(Path(sys.argv[1]), vars(import_module(sys.argv[2]))["TINY"])
