"""Configuration keys that all canvas strategies have, and how a request's own settings come before them."""

from __future__ import annotations

from typing import TypeVar

import attrs

from diffulex_core.canvas.params import CANVAS_FIELDS, LONGEST, CanvasParams
from diffulex_core.config.keys import key
from diffulex_core.errors import InvalidSamplingParams
from diffulex_core.sampling_params import SamplingParams


@attrs.frozen(kw_only=True)
class CanvasOptions:
    """The engine's defaults; a strategy's `config_cls` adds the keys of its own algorithms."""

    gen_length: int | None = key(
        None,
        "Masks that are put behind a prompt; null = the request's max_tokens, cut at the context.",
        minimum=1,
        maximum=LONGEST,
        generation_config=("gen_length",),
    )
    cfg_scale: float = key(
        0.0,
        "Weight of classifier-free guidance; 0 = none, above 0 every step costs twice the rows.",
        minimum=0,
        maximum=1000,
        generation_config=("cfg_scale",),
    )
    suppress_eos: bool = key(False, "Never choose an end token.")
    defer_eos: bool = key(False, "Decide positions that would become an end token after all others.")


Options = TypeVar("Options", bound=CanvasOptions)


def resolve(options: Options, params: CanvasParams, *, algorithms: tuple[str, ...]) -> Options:
    """The options with what the request says in place of the engine's defaults.

    Args:
        algorithms: the values of `alg` that the strategy offers.
    Raises:
        InvalidSamplingParams: it sets something that the strategy does not have.
    """
    given = {name: value for name, value in attrs.asdict(params).items() if name in CANVAS_FIELDS and value is not None}
    known = {field.name for field in attrs.fields(type(options))}
    strange = sorted(given.keys() - known)
    if strange:
        raise InvalidSamplingParams(
            f"{', '.join(strange)} {'is' if len(strange) == 1 else 'are'} set, which this decoding strategy does not "
            f"have. It has {', '.join(sorted(known & set(CANVAS_FIELDS)))}."
        )
    if given.get("alg", algorithms[0]) not in algorithms:
        raise InvalidSamplingParams(
            f"alg is {given['alg']!r}, which this decoding strategy does not offer; choose one of "
            f"{', '.join(algorithms)}."
        )
    return attrs.evolve(options, **given)


def check_applies(params: SamplingParams, options: object) -> None:
    """Refuse settings of a canvas where requests have none.

    Args:
        options: those of the engine's strategy.
    Raises:
        InvalidSamplingParams: naming them.
    """
    if isinstance(options, CanvasOptions):
        return
    values = attrs.asdict(params, recurse=False)
    given = [field.name for field in attrs.fields(CanvasParams) if values[field.name] is not None]
    if params.sparse is not None and params.sparse.enabled:
        given.append("sparse")
    if given:
        raise InvalidSamplingParams(
            f"{', '.join(given)} {'is a setting' if len(given) == 1 else 'are settings'} of fixed-length generation, "
            "and this engine decodes otherwise. Choose a strategy such as llada_canvas or dream_canvas, or leave "
            f"{'it' if len(given) == 1 else 'them'} out."
        )
