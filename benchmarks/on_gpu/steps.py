"""Whole decode steps of networks with random weights of published shapes, beside what moving them must take."""

from __future__ import annotations

import gc
import json
import statistics
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import attrs
import torch
from benchmarks.bench.networks import write_words
from benchmarks.on_gpu.records import Record
from benchmarks.on_gpu.timing import Cost, Limits

from diffulex_core.config import resolve
from diffulex_core.context import BuildContext
from diffulex_core.devices import DTYPES
from diffulex_core.engine import Diffulex
from diffulex_core.host import Host
from diffulex_core.sampling_params import SamplingParams

PUBLISHED = Path(__file__).parents[2] / "tests" / "families" / "published"
PROMPT = 512
BATCHES = (1, 8, 64)


@attrs.frozen(kw_only=True)
class Model:
    """A network and how it is decoded.

    Attributes:
        config: config.json.
        special: ids by what the tokenizer calls them.
        settings: of the engine.
        head_reads: how often a step reads the head's matrix; self-conditioning reads it once more.
        tokens: of an answer; enough that no request ends while steps are measured.
    """

    name: str
    config: Mapping[str, Any] = attrs.field(hash=False)
    special: Mapping[str, int] = attrs.field(hash=False)
    settings: Mapping[str, Any] = attrs.field(factory=dict, hash=False)
    head_reads: int = 1
    tokens: int = 256


def models() -> tuple[Model, ...]:
    """Those of the results."""
    return (
        Model(
            name="LLaDA-8B",
            config=_published("llada"),
            special={"eos_token": 126081, "mask_token": 126336},
            settings={"decoding_strategy": "multi_bd", "block_size": 32, "buffer_size": 1},
        ),
        Model(
            name="LLaDA2-mini",
            config=_published("llada2"),
            special={"eos_token": 156892, "mask_token": 156895},
            settings={"decoding_strategy": "multi_bd", "block_size": 32, "buffer_size": 1},
        ),
        Model(name="DiffusionGemma", config=_published("diffusion_gemma"), special={"eos_token": 1}, head_reads=2),
    )


@attrs.frozen(kw_only=True)
class Weights:
    """Elements of a network's matrices, by who reads them.

    Attributes:
        every: read in every step, embedding and head left out.
        head: of the head.
        experts: of one routed expert, over all layers that have experts.
        num_experts, per_token: of each of these layers.
        kv: that one position stores, by what its layer can see: None = everything, else the latest so many positions.
        attended: multiply-adds of one row with one key, by the same.
    """

    every: int
    head: int
    experts: int = 0
    num_experts: int = 0
    per_token: int = 0
    kv: Mapping[int | None, int] = attrs.field(factory=dict, hash=False)
    attended: Mapping[int | None, int] = attrs.field(factory=dict, hash=False)


def weights_of(model: Model, host: Host) -> Weights:
    """Read from the network's own shapes; nothing is allocated."""
    config = resolve("shape", dict(model.settings), host=host, checkpoint=model.config, tokenizer_mask_id=0)
    build = host.load(config.family.build, provenance=host.models.entry(config.family.name).provenance)
    network = build(model.config, BuildContext(dtype=torch.bfloat16, device=torch.device("meta")))
    every = head = experts = count = 0
    for name, parameter in network.named_parameters():
        if name == "embed.weight":
            head = head or parameter.numel()  # a tied head; its own one comes later
        elif name == "lm_head.weight":
            head = parameter.numel()
        elif ".experts." in name:
            count, experts = len(parameter), experts + parameter[0].numel()
        else:
            every += parameter.numel()
    text = model.config.get("text_config", model.config)
    windows = network.windows
    kinds = [windows[0]] * len(network.kv_geometry)
    if len(windows) > 1:
        kinds = [text["sliding_window"] if kind == "sliding_attention" else None for kind in text["layer_types"]]
    kv, attended = dict.fromkeys(windows, 0), dict.fromkeys(windows, 0)
    for kind, layer in zip(kinds, network.kv_geometry, strict=True):
        kv[kind] += 2 * layer.num_kv_heads * layer.head_dim
        attended[kind] += 2 * layer.num_heads * layer.head_dim
    return Weights(
        every=every,
        head=head,
        experts=experts,
        num_experts=count,
        per_token=text.get("num_experts_per_tok", text.get("top_k_experts", 0)) if count else 0,
        kv=kv,
        attended=attended,
    )


def expected_experts(num_experts: int, per_token: int, rows: int) -> float:
    """How many experts somebody chose, if every row chooses evenly."""
    return num_experts * (1 - (1 - per_token / num_experts) ** rows) if num_experts else 0.0


def step_cost(
    weights: Weights, *, spans: list[tuple[int, int]], head_rows: int, item: int, head_reads: int = 1
) -> Cost:
    """What one step must read, write and multiply.

    Args:
        spans: rows of each sequence and the keys that they see.
        item: bytes of an element.
    """
    rows = sum(count for count, _ in spans)
    touched = expected_experts(weights.num_experts, weights.per_token, rows)
    read = weights.every + weights.head * head_reads + weights.experts * touched
    products = weights.every * rows + weights.head * head_reads * head_rows
    products += weights.experts * weights.per_token * rows
    for kind, elements in weights.kv.items():
        for count, keys in spans:
            seen = keys if kind is None else min(keys, kind + count)
            read += elements * (seen + count)
            products += weights.attended[kind] * count * seen
    return Cost(bytes=float(read * item), flops=2.0 * products)


class Engines:
    """One engine at a time, for all batch sizes of a network. A context manager, which closes it."""

    def __init__(self, *, device: str, settings: Mapping[str, Any] | None = None) -> None:
        """
        Args:
            device: where networks run.
            settings: of all engines, in place of what the benchmark chooses.
        """
        self.host = Host.discover()
        self._chosen = {"device": device, **(settings or {})}
        self._open = ExitStack()
        self._key: tuple[str, bool] | None = None
        self._engine: Diffulex | None = None

    def __enter__(self) -> Engines:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def of(self, model: Model, *, eager: bool, most: int) -> Diffulex:
        """The engine of a network with room for `most` requests."""
        if self._engine is None or self._key != (model.name, eager):
            self._open.close()
            self._engine = None
            gc.collect()
            torch.cuda.empty_cache()  # what torch keeps of earlier cases would be missing in the pages
            folder = self._open.enter_context(TemporaryDirectory())
            write_folder(model, Path(folder))
            options: dict[str, Any] = {
                "load_format": "dummy", "dtype": "bfloat16", "enforce_eager": eager, "max_num_reqs": most,
                "max_model_len": PROMPT + model.tokens + 256, "max_num_batched_tokens": 1 << 15,
                "max_logits_tokens": 2048, "enable_prefix_caching": False, **model.settings, **self._chosen,
            }  # fmt: skip
            self._engine = self._open.enter_context(Diffulex(folder, host=self.host, **options))
            self._key = model.name, eager
        return self._engine


def cases(
    chosen: tuple[Model, ...],
    limits: Limits,
    *,
    engines: Engines,
    now: Callable[[], float],
    batches: tuple[int, ...] = BATCHES,
    seconds: float = 8.0,
    prompt: int = PROMPT,
) -> dict[str, Callable[[], Record]]:
    """Every network at every batch size with and without graphs, by name."""

    def case(model: Model, batch: int, eager: bool) -> Record:
        engine = engines.of(model, eager=eager, most=max(batches))
        return measure(
            engine, model, limits, weights=weights_of(model, engines.host), batch=batch, prompt=prompt, now=now,
            seconds=seconds,
        )  # fmt: skip

    return {
        f"{model.name}, batch {batch}, {'eager' if eager else 'graphs'}": partial(case, model, batch, eager)
        for model in chosen
        for eager in (False, True)
        for batch in batches
    }


def measure(
    engine: Diffulex,
    model: Model,
    limits: Limits,
    *,
    weights: Weights,
    batch: int,
    prompt: int,
    now: Callable[[], float],
    seconds: float,
    most: int = 40,
    warm_ups: int = 6,
) -> Record:
    """Median seconds of a step of `batch` requests that only decodes, and the share of what the device could do."""
    params = SamplingParams(temperature=0.0, max_tokens=model.tokens, ignore_eos=True)
    prompts = [[10 + (7 * index + 3 * at) % 400 for at in range(prompt)] for index in range(batch)]
    item = DTYPES[engine.config.model.dtype].itemsize
    times, costs, rows, decoded, began = list[float](), list[Cost](), list[int](), 0, now()
    ways = Counter[str]()
    with engine.stream(prompts, params) as generation:
        while len(times) < most and not generation.done and (not times or now() - began < seconds):
            at = now()
            result = generation.advance()
            taken = now() - at
            if result.plan is None or result.output is None:
                break
            windows = result.plan.windows
            if len(windows) < batch or any(window.span.catch_up for window in windows):
                continue
            decoded += 1
            if result.output.how == "captured":  # the first of its shape; those that follow replay it
                continue
            if decoded <= warm_ups:
                began = now()
                continue
            spans = [(window.span.rows, window.span.start + window.span.rows) for window in windows]
            head_rows, reads = result.output.head_rows, model.head_reads
            costs.append(step_cost(weights, spans=spans, head_rows=head_rows, item=item, head_reads=reads))
            times.append(taken)
            rows.append(result.plan.rows)
            ways[result.output.how] += 1
    if not times:
        raise RuntimeError(f"no step of {batch} requests only decodes; {decoded} did before warm-up was over")
    return {**step_record(times, costs, rows, limits), "ways": dict(ways)}


def step_record(times: list[float], costs: list[Cost], rows: list[int], limits: Limits) -> Record:
    """Steps in numbers; each is compared with its own work."""
    shares = [cost.least_seconds(limits) / taken for cost, taken in zip(costs, times, strict=True)]
    median, share = statistics.median(times), statistics.median(shares)
    bound = costs[0].bytes / limits.bandwidth >= costs[0].flops / limits.rate
    return {
        "steps": len(times),
        "seconds": {"median": median, "low": min(times), "high": max(times)},
        "rows": statistics.median(rows),
        "bytes": statistics.median(cost.bytes for cost in costs),
        "flops": statistics.median(cost.flops for cost in costs),
        "bound": "memory" if bound else "products",
        "share": share,
        "summary": f"{median * 1e3:.2f} ms, {share:.0%} of what the device can do",
    }


def write_folder(model: Model, folder: Path) -> None:
    """config.json and a tokenizer: all that random weights need."""
    (folder / "config.json").write_text(json.dumps(dict(model.config)))
    text = model.config.get("text_config", model.config)
    write_words(folder, text["vocab_size"], model.special)


def _published(name: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((PUBLISHED / f"{name}.json").read_text())
    return config
