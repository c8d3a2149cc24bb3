"""Loading the code that a descriptor names as `"package.module:attribute"`."""

from __future__ import annotations

import pkgutil
from typing import Any

from diffulex_core.errors import PluginError
from diffulex_core.registry import Provenance


def load_reference(reference: str, *, provenance: Provenance) -> Any:
    """Import what a descriptor refers to; Python's module cache makes a second call free.

    Args:
        reference: `"package.module:attribute"`.
        provenance: the plugin whose descriptor holds the reference, for the error.
    Returns:
        The attribute; its type is what the descriptor's field promises.
    Raises:
        PluginError: the module or the attribute cannot be imported; names reference, plugin and distribution.
    """
    try:
        return pkgutil.resolve_name(reference)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".removesuffix(".")
        raise PluginError(
            f"cannot load {reference!r} of plugin {provenance}: {reason}. "
            f"Repair or reinstall {provenance.dist}, or install what it needs."
        ) from error
