"""Checks of descriptors of model families: what they claim is what their networks are."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diffulex_core.config import Origin
from diffulex_core.config.names import choose_family
from diffulex_core.context import BuildContext
from diffulex_core.distributed import ALONE, Communicator, Seat
from diffulex_core.errors import ConfigError
from diffulex_core.protocols import DiffusionModel
from diffulex_core.testing.check import AnyCheck, CheckFailed, check
from diffulex_core.testing.checks import soft_rows
from diffulex_core.testing.effort import Effort
from diffulex_core.testing.forward import META, Fed, Memory, Spy, hidden_rows, network_of, run
from diffulex_core.testing.sequences import PAGE, draws, pages_for, token_ids
from diffulex_core.testing.subjects import CPU, FamilySubject
from diffulex_core.testing.views import BLOCK, cut_view

WRONG: tuple[object, ...] = (None, "many", -1, 0, 0.5, [], {"a": 1})
"""Values that most keys of a config.json cannot have."""
REMOVED = object()
"""Stands for no value at all."""


@check(FamilySubject)
def check_the_tiny_config_belongs_to_its_family(subject: FamilySubject, effort: Effort) -> None:
    """The small config.json has no problems, and the engine takes it for a checkpoint of this family and of no other.

    Why: `architectures` and `model_types` are how a checkpoint finds its family.
    Fix: give `tiny` the architecture and the model type of the published checkpoints, and claim what no other family
    claims.
    """
    if problems := _problems(subject, subject.config):
        raise CheckFailed(f"check_config finds problems in the tiny config.json: {' '.join(problems)}")
    choice = choose_family(None, Origin(), dict(subject.config), subject.host)
    if choice.descriptor is None:
        raise CheckFailed(f"the tiny config.json does not find its family: {' '.join(choice.problems)}")
    if choice.descriptor.name != subject.family.name:
        raise CheckFailed(f"the tiny config.json is taken for one of the family {choice.descriptor.name!r}.")


@check(FamilySubject)
def check_special_tokens_are_in_the_vocabulary(subject: FamilySubject, effort: Effort) -> None:
    """The tokens that the small config.json names have ids below the network's `vocab_size`, and so has every id fed.

    Why: the mask token is fed in place of every undecided position, so it needs an embedding.
    Fix: let `vocab_size` be the rows of the head, and give `tiny` ids that fit it.
    """
    network = network_of(subject)
    size = network.vocab_size
    if type(size) is not int or size < 2:
        raise CheckFailed(f"vocab_size is {size!r}; it is the number of columns of the logits.")
    for key in ("mask_token_id", "eos_token_id"):
        given = subject.config.get(key)
        for token in given if isinstance(given, (list, tuple)) else [given]:
            if type(token) is int and token >= size:
                raise CheckFailed(f"{key} is {token} in the tiny config.json, and the network has {size} ids.")
    fed = Fed(tokens=[0, size - 1], ends=[2, 2], table=range(1))
    [logits] = run(network, Memory.of(network, 1, PAGE), fed)
    if logits.shape[-1] != size or not bool(logits.isfinite().all()):
        raise CheckFailed(f"the ids 0 and {size - 1} give logits of shape {list(logits.shape)}, or not finite ones.")


def _unchecked(subject: FamilySubject) -> str | None:
    return "the family has no check_config" if subject.family.check_config is None else None


@check(FamilySubject, when=_unchecked)
def check_config_problems_are_told(subject: FamilySubject, effort: Effort) -> None:
    """`check_config` names what is wrong with a config.json, and `build` takes all that it lets pass.

    Keys are left out, given values of the wrong kind, or unknown ones are added, which do no harm. `build` raises
    nothing but ConfigError; it may be able to build what `check_config` refuses all the same.

    Why: users bring checkpoints that nobody has tried; a traceback tells them nothing.
    Fix: read keys with a `ConfigReader` (diffulex_core.config_json) or test them yourself, collect every problem as a
    sentence with key, value and what is supported, and raise ConfigError of them in `build`.
    """
    paths = list(_paths(subject.config))
    for draw in draws(effort, 2.0):
        path, value = draw.choice(paths), draw.choice((REMOVED, *WRONG))
        config = _changed(subject.config, path, value)
        said = "left out" if value is REMOVED else repr(value)
        problems = _problems(subject, config)
        if problems and value in (REMOVED, "many") and not any(path[-1] in problem for problem in problems):
            raise CheckFailed(f"{'.'.join(path)} is {said}, and no problem names it: {problems}")
        _require_agreement(subject, config, problems, f"{'.'.join(path)} is {said}")
    more = {**subject.config, "a_key_that_nobody_knows": 1, "transformers_version": "0.0"}
    if problems := _problems(subject, more):
        raise CheckFailed(f"keys that have nothing to do with the network are refused: {problems}")
    _require_agreement(subject, {}, _problems(subject, {}), "config.json is empty")


def _problems(subject: FamilySubject, config: Mapping[str, Any]) -> list[str]:
    reference = subject.family.check_config
    if reference is None:
        return []
    try:
        problems = subject.load(reference)(deepcopy(dict(config)))
    except Exception as error:
        raise CheckFailed(f"check_config raised {type(error).__name__}: {error}; it returns problems.") from error
    if not isinstance(problems, (list, tuple)) or not all(isinstance(problem, str) for problem in problems):
        raise CheckFailed(f"check_config returned {problems!r}; it returns a list of sentences.")
    return list(problems)


def _require_agreement(subject: FamilySubject, config: Mapping[str, Any], problems: list[str], what: str) -> None:
    try:
        _build(subject, config)
    except ConfigError as error:
        if not problems:
            raise CheckFailed(f"{what}: check_config finds nothing, but build refuses it: {error}") from error
    except Exception as error:
        raise CheckFailed(f"{what}: build raised {type(error).__name__}, not ConfigError: {error}") from error


@check(FamilySubject)
def check_networks_have_the_shape_that_they_declare(subject: FamilySubject, effort: Effort) -> None:
    """A network is a `DiffusionModel` whose layers hand over and store the heads that `kv_geometry` declares.

    Its head takes any number of rows; of none it makes none.

    Why: pages are allocated, and backends chosen, by what the network says of itself; a runner may have nothing to
    sample in a step.
    Fix: give one entry for each layer that stores K/V, with the heads that this process holds, and one entry in
    `windows` for each kind of layer. Let `logits` look at no row in particular, and take no maximum over rows.
    """
    network = network_of(subject)
    _require_protocol(network)
    length, view = BLOCK + 2, cut_view(subject.family)
    memory = Memory.of(network, pages_for(length), PAGE, fill=float("nan"))
    spy = Spy(memory)
    [draw] = draws(effort, 0.05)
    fed = Fed(tokens=token_ids(network, length, draw), ends=view.ends(length), table=range(pages_for(length)))
    hidden = hidden_rows(network, memory, fed, backend=spy)
    if hidden.ndim != 2 or len(hidden) != 8:
        raise CheckFailed(f"8 rows give hidden rows of shape {list(hidden.shape)}; it is [rows, hidden].")
    _require_head(network, hidden)
    for layer, geometry in enumerate(network.kv_geometry):
        for what, stored in zip(("keys", "values"), memory.flat(layer), strict=True):
            rows = stored[:length]
            if not bool(rows.isfinite().all()):
                raise CheckFailed(f"layer {layer} of {len(network.kv_geometry)} stores no {what}, or not finite ones.")
            if geometry.num_kv_heads > 1 and torch.equal(rows[:, 0], rows[:, 1]):
                raise CheckFailed(
                    f"layer {layer} declares {geometry.num_kv_heads} key/value heads; its {what} are equal."
                )
    for call in spy.calls:
        geometry = network.kv_geometry[call.layer]
        wanted = [8, geometry.num_heads, geometry.head_dim]
        if call.layer >= 0 and list(call.query.shape) != wanted:
            got = list(call.query.shape)
            raise CheckFailed(f"layer {call.layer} asks with queries of shape {got}; kv_geometry says {wanted}.")
    silent = set(range(len(network.kv_geometry))) - {call.layer for call in spy.calls}
    if spy.calls and silent:
        raise CheckFailed(f"layer {min(silent)} of {len(network.kv_geometry)} never asks for attention.")


def _require_head(network: DiffusionModel, hidden: Tensor) -> None:
    with torch.inference_mode():
        some = network.logits(hidden)
        try:
            none = network.logits(hidden[:0])
        except Exception as error:
            raise CheckFailed(f"logits() of no rows raises {type(error).__name__}: {error}") from error
    for rows, logits in ((8, some), (0, none)):
        if list(logits.shape) != [rows, some.shape[-1]]:
            raise CheckFailed(f"logits() of {rows} rows has the shape {list(logits.shape)}; it is [rows, columns].")


def _require_protocol(network: DiffusionModel) -> None:
    if not isinstance(network, nn.Module) or not isinstance(network, DiffusionModel):
        raise CheckFailed(
            f"build returned a {type(network).__name__}; it returns a torch.nn.Module that is a DiffusionModel."
        )
    if not network.kv_geometry or not network.windows:
        raise CheckFailed("kv_geometry and windows have an entry for each layer, and for each kind of layer.")
    for window in network.windows:
        if window is not None and (type(window) is not int or window < 1):
            raise CheckFailed(f"windows holds {window!r}; it is a number of tokens, or None for full attention.")
    for layer, geometry in enumerate(network.kv_geometry):
        if geometry.num_heads % geometry.num_kv_heads:
            raise CheckFailed(f"layer {layer}: {geometry.num_heads} query heads cannot share {geometry.num_kv_heads}.")


@check(FamilySubject)
def check_impossible_divisions_are_refused(subject: FamilySubject, effort: Effort) -> None:
    """A number of processes that the network cannot be divided among is refused by all ranks, with a ConfigError.

    Where it can be, the ranks hold all query heads between them, and each at least one key/value head.

    Why: `tensor_parallel_size` is the user's; a process that dies while others wait tells nothing.
    Fix: divide with `diffulex_core.distributed.ranges`, whose errors name the numbers, or raise ConfigError yourself.
    """
    whole = network_of(subject).kv_geometry
    for size in (2, 3, 4):
        shares = [_share(subject, Seat(rank, size)) for rank in range(size)]
        held = [share for share in shares if share is not None]
        if not held:
            continue
        if len(held) < size:
            raise CheckFailed(f"{len(held)} of {size} processes can have a share, and the others are refused.")
        for layer, geometry in enumerate(whole):
            queries = sum(share.kv_geometry[layer].num_heads for share in held)
            keys = sum(share.kv_geometry[layer].num_kv_heads for share in held)
            if queries != geometry.num_heads or keys != max(size, geometry.num_kv_heads):
                raise CheckFailed(
                    f"layer {layer}: {size} processes hold {queries} query and {keys} key/value heads between them; the"
                    f" network has {geometry.num_heads} and {geometry.num_kv_heads}."
                )


def _share(subject: FamilySubject, seat: Seat) -> DiffusionModel | None:
    try:
        return subject.build(tp=seat, device=META)
    except ConfigError:
        return None


@check(FamilySubject)
def check_networks_are_built_afresh(subject: FamilySubject, effort: Effort) -> None:
    """Building twice gives two networks of one structure that share nothing, and leaves everything else as it was.

    Parameters are made on the device and in the order that is asked for; random number generators, torch's defaults and
    the config.json that is passed are left alone.

    Why: two engines in one process must not meet, and a large network has no place in the host's memory.
    Fix: make every parameter in `build`, on `ctx.device`; keep no module, tensor or table at the level of a module of
    Python.
    """
    config = dict(deepcopy(subject.config))
    before = _surroundings()
    try:
        _check_afresh(subject, config, before)
    finally:
        _restore(before)


def _check_afresh(subject: FamilySubject, config: dict[str, Any], before: Mapping[str, Any]) -> None:
    first, second = (_build(subject, config, device=CPU) for _ in range(2))
    hollow_network = _build(subject, config, device=META)
    after = _surroundings()
    for what, old in before.items():
        if not _equal(old, after[what]):
            raise CheckFailed(f"building a network changed {what}.")
    if config != subject.config:
        raise CheckFailed("build changed the config.json that it was given.")
    one, other, hollow = (each.state_dict(keep_vars=True) for each in (first, second, hollow_network))
    shapes = [{name: (tensor.shape, tensor.dtype) for name, tensor in each.items()} for each in (one, other, hollow)]
    if shapes[0] != shapes[1] or shapes[0] != shapes[2]:
        raise CheckFailed("the parameters of two networks of one config.json have other names, shapes or dtypes.")
    for name, tensor in hollow.items():
        if not tensor.is_meta:
            raise CheckFailed(f"{name} was made on {tensor.device}, where ctx.device is the meta device.")
    owned = {tensor.untyped_storage().data_ptr() for tensor in one.values() if tensor.numel()}
    for name, tensor in other.items():
        if tensor.numel() and tensor.untyped_storage().data_ptr() in owned:
            raise CheckFailed(f"{name} is one tensor in two networks.")


def _no_bfloat16(subject: FamilySubject) -> str | None:
    """Why the family has nothing to do with bfloat16; None where it has."""
    try:
        subject.build(dtype=torch.bfloat16, device=META)
    except ConfigError as error:
        return f"it is not built in bfloat16: {' '.join(error.problems)}"
    except Exception:  # noqa: BLE001 - code under test may raise anything; the check itself will show it
        return None
    return None


@check(FamilySubject, when=_no_bfloat16)
def check_dtypes_are_heeded(subject: FamilySubject, effort: Effort) -> None:
    """In bfloat16 most parameters, the hidden rows and the queries are bfloat16, and the logits are finite.

    Single parameters may be wider, such as a router's. A family that cannot run in it refuses it with a ConfigError.

    Why: parameters of twice the size do not fit where they should, and mixed dtypes fail in the middle of a forward.
    Fix: make parameters of `ctx.dtype`, compute in fp32 where it matters, and cast back.
    """
    dtype = torch.bfloat16
    network = network_of(subject, dtype=dtype)
    assert isinstance(network, nn.Module), "a network is a torch.nn.Module"
    sizes: dict[torch.dtype, int] = {}
    for tensor in network.state_dict().values():
        if tensor.is_floating_point():
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.numel()
    if 2 * sizes.get(dtype, 0) < sum(sizes.values()):
        raise CheckFailed(f"of a network in bfloat16, parameters hold numbers of {sizes}.")
    length, view = BLOCK + 2, cut_view(subject.family)
    memory = Memory.of(network, pages_for(length), PAGE, dtype=dtype)
    spy = Spy(memory)
    [draw] = draws(effort, 0.05)
    fed = Fed(tokens=token_ids(network, length, draw), ends=view.ends(length), table=range(pages_for(length)))
    hidden = hidden_rows(network, memory, fed, backend=spy)
    with torch.inference_mode():
        logits = network.logits(hidden)
    if hidden.dtype != dtype or any(call.query.dtype != dtype for call in spy.calls):
        raise CheckFailed(f"a network in bfloat16 gives hidden rows in {hidden.dtype}, or other queries.")
    if not logits.is_floating_point() or not bool(logits.isfinite().all()):
        raise CheckFailed("a network in bfloat16 gives logits that are not finite.")


def _build(
    subject: FamilySubject,
    config: Mapping[str, Any],
    *,
    device: torch.device = META,
    dtype: torch.dtype = torch.float32,
    tp: Communicator = ALONE,
) -> nn.Module:
    build: Callable[..., Any] = subject.load(subject.family.build)
    network = build(config, BuildContext(dtype=dtype, device=device, tp=tp))
    if not isinstance(network, nn.Module):
        raise CheckFailed(f"build returned a {type(network).__name__}; it returns a torch.nn.Module.")
    return network


def _surroundings() -> dict[str, Any]:
    """What belongs to everybody."""
    return {
        "torch's default dtype": torch.get_default_dtype(),
        "torch's default device": torch.get_default_device(),
        "whether torch records gradients": torch.is_grad_enabled(),
        "torch's deterministic mode": torch.are_deterministic_algorithms_enabled(),
        "torch's number of threads": torch.get_num_threads(),
        "torch's random number generator": torch.get_rng_state(),
        "numpy's random number generator": str(np.random.get_state(legacy=False)),
        "Python's random number generator": random.getstate(),
    }


def _restore(before: Mapping[str, Any]) -> None:
    """Undo what a network did to what belongs to everybody, for the sake of the checks that follow.

    Nothing is set that is as it was: even setting torch's default device to what it is makes every call slower.
    """
    restorers: dict[str, Callable[[Any], object]] = {
        "torch's default dtype": torch.set_default_dtype,
        "torch's default device": lambda device: torch.set_default_device(None if device == CPU else device),
        "whether torch records gradients": torch.set_grad_enabled,
        "torch's deterministic mode": torch.use_deterministic_algorithms,
        "torch's number of threads": torch.set_num_threads,
        "torch's random number generator": torch.set_rng_state,
        "Python's random number generator": random.setstate,
    }
    after = _surroundings()
    for what, restore in restorers.items():
        if not _equal(before[what], after[what]):
            restore(before[what])


def _equal(a: object, b: object) -> bool:
    return torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a == b


def _paths(config: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The path of every value, sections included."""
    for key, value in config.items():
        yield (*above, key)
        if isinstance(value, Mapping):
            yield from _paths(value, (*above, key))


def _changed(config: Mapping[str, Any], path: tuple[str, ...], value: object) -> dict[str, Any]:
    """The same with another value at the path, or with none."""
    head, *rest = path
    other = {key: part for key, part in config.items() if key != head}
    if rest:
        return {**other, head: _changed(config[head], tuple(rest), value)}
    return other if value is REMOVED else {**other, head: value}


CHECKS: tuple[AnyCheck, ...] = (
    check_the_tiny_config_belongs_to_its_family,
    check_special_tokens_are_in_the_vocabulary,
    check_config_problems_are_told,
    check_networks_have_the_shape_that_they_declare,
    check_impossible_divisions_are_refused,
    check_networks_are_built_afresh,
    check_dtypes_are_heeded,
    *soft_rows.CHECKS,
)
