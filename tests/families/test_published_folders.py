"""A folder as it is published, with everything beside weights and configuration, answers like the bare one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from diffulex_core.config.names import misfits
from diffulex_core.engine import Diffulex
from diffulex_core.sampling_params import SamplingParams
from tests.core.checkpoints import EOS, MASK
from tests.families.subjects import PLAIN, Subject, host
from tests.families.test_family_engines import BLOCK, SETTINGS, checkpoint

CODE = (
    "import pathlib\npathlib.Path(__file__).with_name('it_ran').touch()\nraise SystemExit('this code must not run')\n"
)
AUTO_MAP = {"AutoConfig": "code.Config", "AutoModel": "code.Model", "AutoTokenizer": ["code.Tokenizer", None]}
FLAGS = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}


def update(path: Path, changes: Mapping[str, Any], *, without: tuple[str, ...] = ()) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({key: value for key, value in {**content, **changes}.items() if key not in without}))


def dress(folder: Path) -> None:
    """Add what published folders hold besides."""
    update(folder / "config.json", {
        "auto_map": AUTO_MAP, "transformers_version": "4.46.3", "torch_dtype": "bfloat16", "use_cache": True,
        "initializer_range": 0.02, "attention_dropout": 0.0, "_name_or_path": "somewhere/else", "bos_token_id": 1,
    })  # fmt: skip
    update(folder / "generation_config.json", {"_from_model_config": True, "steps": 64, "remasking": {"kind": "low"}})
    update(folder / "tokenizer_config.json", {
        "auto_map": AUTO_MAP, "tokenizer_class": "CodeTokenizerOfTheirs", "extra_special_tokens": [MASK, EOS],
        "chat_template": "{{ messages }}", "model_max_length": 10**30, "trust_remote_code": True,
    })  # fmt: skip
    tokens = {name: {"content": text, **FLAGS} for name, text in (("mask_token", MASK), ("eos_token", EOS))}
    update(folder / "special_tokens_map.json", {**tokens, "additional_special_tokens": [MASK, tokens["eos_token"]]})
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    update(folder / "model.safetensors.index.json", {**index, "metadata": {"total_size": 1, "total_parameters": 2}})
    for name in ("code.py", "configuration_x.py", "modeling_x.py", "tokenization_x.py"):
        (folder / name).write_text(CODE)
    for name in ("README.md", ".gitattributes", "LICENSE", "model.png"):
        (folder / name).write_text("-")


def rewrite_rope(folder: Path) -> None:
    """State the rotary embedding and the dtype as newer versions of transformers do."""
    config = json.loads((folder / "config.json").read_text())
    moved = {key: config[key] for key in ("rope_theta", "partial_rotary_factor") if key in config}
    if moved:
        changes = {"rope_parameters": {"rope_type": "default", **moved}, "dtype": "bfloat16"}
        update(folder / "config.json", changes, without=(*moved, "torch_dtype", "rope_scaling"))


def answers(folder: Path, strategy: str) -> list[tuple[int, ...]]:
    settings: dict[str, Any] = {"decoding_strategy": strategy, "block_size": BLOCK, "page_size": 8, "num_pages": 16}
    with Diffulex(folder, host=host(), strict=True, **settings, **SETTINGS.get(strategy, {})) as engine:
        answers = engine.generate([[5, 9, 2, 31, 17], [44]], SamplingParams(temperature=0.0, max_tokens=6, seed=1))
        return [tuple(answer.token_ids) for answer in answers]


@pytest.mark.parametrize("subject", PLAIN, ids=str)
def test_a_published_folder_answers_like_the_bare_one_and_runs_no_code(subject: Subject, tmp_path: Path) -> None:
    fitting = [strategy.name for strategy in host().strategies if not misfits(subject.family, strategy, host())]
    strategy = subject.family.default_strategy or fitting[0]
    folder = checkpoint(subject, tmp_path)
    bare = answers(folder, strategy)
    assert all(bare)
    dress(folder)
    assert answers(folder, strategy) == bare
    rewrite_rope(folder)
    assert answers(folder, strategy) == bare
    assert not (folder / "it_ran").exists()
