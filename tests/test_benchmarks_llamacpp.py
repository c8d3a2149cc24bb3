"""llama.cpp as a contender: the file that it reads, what it is asked, and what is understood of what it says."""

from __future__ import annotations

import math
import stat
import sys
from importlib import import_module
from pathlib import Path

import attrs
import gguf
import pytest
import torch
from benchmarks.bench import cells, child, networks, render, session, targets
from benchmarks.bench.gguf_file import name_of, pairwise_rotated, word, write_gguf
from benchmarks.bench.llamacpp import LlamaCpp, LlamaCppFailed, answer, times
from benchmarks.bench.results import Contended, Outcome, Report
from benchmarks.bench.work import Work
from safetensors.torch import load_file

from tests.diffusion_cli import tensors_of

ROOT = Path(__file__).parents[1]
NETWORK = networks.NETWORKS["smoke"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return networks.write_network(NETWORK, tmp_path_factory.mktemp("nets"))


@pytest.fixture
def cli(tmp_path: Path) -> Path:
    """A program that reads GGUF files as llama.cpp does and answers like its tool."""
    path = tmp_path / "llama-diffusion-cli"
    path.write_text(f'#!/bin/sh\ncd {ROOT} && exec {sys.executable} tests/diffusion_cli.py "$@"\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_the_file_has_every_weight_and_what_the_tool_asks_of_its_vocabulary(folder: Path, tmp_path: Path) -> None:
    reader = gguf.GGUFReader(write_gguf(folder, NETWORK.config, "float32", tmp_path / "m.gguf"))
    found, stored = tensors_of(reader), load_file(folder / "model.safetensors")
    assert sorted(found) == sorted(map(name_of, stored))
    assert sum(tensor.size for tensor in found.values()) == NETWORK.parameters
    for name, tensor in stored.items():
        if ".q_proj." not in name and ".k_proj." not in name:
            assert torch.equal(torch.from_numpy(found[name_of(name)]), tensor), name
    words = reader.fields["tokenizer.ggml.tokens"].contents()
    assert len(set(words)) == NETWORK.vocab
    assert words[reader.fields["tokenizer.ggml.mask_token_id"].contents()] == word(NETWORK.mask)
    assert not any(reader.fields[f"tokenizer.ggml.add_{kind}"].contents() for kind in ("bos_token", "space_prefix"))


def test_a_file_in_bfloat16_has_the_rounded_matrices_and_plain_norms(folder: Path, tmp_path: Path) -> None:
    reader = gguf.GGUFReader(write_gguf(folder, NETWORK.config, "bfloat16", tmp_path / "m.gguf"))
    kinds = {each.name: each.tensor_type for each in reader.tensors}
    assert kinds["blk.0.attn_norm.weight"] == gguf.GGMLQuantizationType.F32
    assert kinds["output.weight"] == gguf.GGMLQuantizationType.BF16
    stored = load_file(folder / "model.safetensors")["model.transformer.ff_out.weight"]
    assert torch.equal(torch.from_numpy(tensors_of(reader)["output.weight"]), stored.bfloat16().float())


def test_halves_of_a_head_become_neighbours() -> None:
    weight = torch.arange(8.0)[:, None].expand(8, 3)
    assert pairwise_rotated(weight, heads=2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_a_tensor_that_llada_has_not_is_refused() -> None:
    with pytest.raises(KeyError, match="q_norm"):
        name_of("model.transformer.blocks.0.q_norm.weight")


@pytest.mark.parametrize(("part", "seconds"), [("whole", 1.0), ("forwards", 0.8)])
def test_the_tools_own_clock_counts(
    folder: Path, cli: Path, monkeypatch: pytest.MonkeyPatch, part: str, seconds: float
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    made = LlamaCpp(folder=str(folder), config=NETWORK.config, dtype="float32", cli=str(cli), part=part)  # type: ignore[arg-type]
    made.prepare(Work(prompt=5, output=8, batch=1, steps=4), [[3, 40, 11, 12, 7]])
    command = made.command()
    assert command[command.index("-t") + 1] == command[command.index("-tb") + 1] == "3"
    assert {command[command.index(name) + 1] for name in ("-c", "-b", "-ub")} == {"13"}
    found = made.run()
    assert found.seconds == pytest.approx(seconds)
    assert (found.steps, found.rows, found.head_rows) == (4, 52, 52)
    assert len(found.tokens[0]) == 8
    assert NETWORK.mask not in found.tokens[0]


def test_what_the_tool_cannot_do_is_not_asked_of_it(folder: Path, cli: Path) -> None:
    made = LlamaCpp(folder=str(folder), config=NETWORK.config, dtype="float32", cli=str(cli))
    plain = Work(prompt=5, output=8, batch=1, steps=4)
    for changed in ({"batch": 2}, {"threshold": 0.5}, {"sampled_steps": 2}):
        with pytest.raises(ValueError, match="one prompt at a time"):
            made.prepare(attrs.evolve(plain, **changed), [[1] * 5] * 2)  # type: ignore[arg-type]


def test_a_tool_that_fails_is_quoted(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    broken = tmp_path / "cli"
    broken.write_text("#!/bin/sh\necho error: failed to load model >&2\nexit 1\n")
    broken.chmod(0o755)
    made = LlamaCpp(folder=str(folder), config=NETWORK.config, dtype="float32", cli=str(broken))
    made.prepare(Work(prompt=1, output=8, batch=1, steps=4), [[3]])
    with pytest.raises(LlamaCppFailed, match=r"ended with 1: \s+error: failed to load model"):
        made.run()


SAID = "diffusion step: 3/4 [==] 75%\ntotal time: 693.98ms, time per step: 173.50ms, sampling time per step: 12.25ms\n"


def test_times_and_tokens_are_read_from_what_the_tool_says() -> None:
    assert times(SAID) == (693.98, 12.25)
    assert answer(f"{SAID}\n<|4|><|51|>\n", "", [9], 2) == [4, 51]
    assert answer("", f"{SAID}\n<|9|><|4|><|51|>\n", [9], 2) == [4, 51], "with the prompt, among its messages"
    with pytest.raises(LlamaCppFailed, match="no line with the total time"):
        times("diffusion step: 3/4")
    with pytest.raises(LlamaCppFailed, match="3 tokens were expected"):
        answer(f"{SAID}\n<|4|><|51|>\n", "", [9], 3)


def test_both_programs_have_the_same_weights_if_a_single_step_gives_the_same_tokens(
    folder: Path, cli: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    cell = next(cell for cell in cells.llamacpp_cells(str(cli), smoke=True) if "-s1-float32" in cell.name)
    kept = {}
    for entry in cell.entries:
        module, _, name = entry.target.partition(":")
        made = vars(import_module(module))[name](folder=str(folder), config=NETWORK.config, **entry.arguments)
        made.prepare(entry.work, networks.prompts(NETWORK, length=entry.work.prompt, count=1))
        kept[entry.name] = [child._measure(made)]
    assert session.compare(cell, kept) == 1.0
    forwards, whole, ours = (rounds[0] for rounds in kept.values())
    assert (forwards.wall, whole.wall) == (pytest.approx(0.2), pytest.approx(0.25))
    assert math.isnan(forwards.cpu)
    assert ours.cpu > 0


def test_cells_compare_our_whole_step_with_its_forwards_in_both_precisions() -> None:
    found = list(cells.llamacpp_cells("cli"))
    assert [cell.name for cell in found] == [
        f"llamacpp-{network}-s{steps}-{dtype}"
        for network in ("60M", "150M")
        for dtype in ("float32", "bfloat16")
        for steps in (1, 8)
    ]
    for cell in found:
        assert [entry.name for entry in cell.entries] == ["llama.cpp, forwards", "llama.cpp, whole", cells.CANVAS]
        assert len({entry.work for entry in cell.entries}) == 1


def contended(name: str, wall: list[float], *, cpu: float = math.nan, steps: int = 8) -> Contended:
    work = Work(prompt=64, output=192, batch=1, steps=steps)
    return Contended(
        name=name, dtype="float32", work=work, wall=wall, cpu=[cpu] * len(wall), tokens=192, steps=steps,
        planned_steps=steps, rows=8, head_rows=8, first_block=[], outside=[], peak_rss=1, fraction=None,
    )  # fmt: skip


@pytest.mark.parametrize(("ours", "verdict"), [(1.0, "reached"), (1.1, "missed")])
def test_the_page_says_whether_the_aim_was_reached(ours: float, verdict: str) -> None:
    contenders = [contended("llama.cpp, forwards", [1.2]), contended("our engine", [ours], cpu=1.0)]
    outcome = Outcome(
        name="c", section="llamacpp", network="60M", contenders=contenders, others=0, citable=True, agreement=None
    )
    (found,) = targets.verdicts(report(outcome), None)
    assert (found.where, found.wanted, found.reached) == ("c", 1.15, verdict == "reached")
    text = render.page(report(outcome), results="cpu.json", picture=None)
    assert "| whole canvases against llama.cpp's forwards | `c` | >= 1.15x |" in text
    assert verdict in text
    assert "nan" not in text
    once = attrs.evolve(outcome, contenders=[attrs.evolve(each, steps=1, planned_steps=1) for each in contenders])
    assert [*targets.verdicts(report(once), None)] == [], "a single step is there for its tokens"


def report(outcome: Outcome) -> Report:
    told = ("cpu", "family", "instructions", "cores", "threads", "memory_gib", "system", "python", "torch")
    return Report(
        commit="abc", began="2026-01-01T00:00:00+00:00", machine=dict.fromkeys((*told, "transformers"), ""), limits={},
        imports={}, trained=[], gemma=[], outcomes=[outcome],
    )  # fmt: skip
