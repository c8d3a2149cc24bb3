"""Broken subjects for the checks of `diffulex_core.testing.checks.sources`."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import ClassVar

from diffulex_core.errors import CheckpointError
from diffulex_core.protocols import ModelSource
from diffulex_core.testing.check import AnyCheck
from diffulex_core.testing.checks import sources
from diffulex_core.testing.subjects import ModelSourceSubject
from tests.conformance.mutant import Mutant

KNOWN = "mutant/model"


class RaisesItsOwn:
    """A name that it does not know is a KeyError."""

    def resolve(self, name: str) -> Path | None:
        return {KNOWN: Path(gettempdir())}[name]


class SaysNothing:
    """The error does not say which name was asked for."""

    def resolve(self, name: str) -> Path | None:
        if "/" not in name:
            return None
        raise CheckpointError("some model", ["It is not here."])


class ClaimsEverything:
    """Every name is taken for a folder of its own, whether it is there or not."""

    def resolve(self, name: str) -> Path | None:
        return Path(gettempdir()) / "models" / name


class FallsBack:
    """A name that it does not know gives some other model."""

    def resolve(self, name: str) -> Path | None:
        return Path(gettempdir())


class LooksItUp:
    """It asks another machine and does not catch what comes of that."""

    def resolve(self, name: str) -> Path | None:
        socket.create_connection(("example.org", 443))
        return None


class ReturnsText:
    """A path is returned as a text."""

    def resolve(self, name: str) -> Path | None:
        return name if Path(name).is_dir() else None  # type: ignore[return-value]  # the fault


class TakesTheParent:
    """A folder's parent is returned."""

    def resolve(self, name: str) -> Path | None:
        return Path(name).parent if len(name) < 256 and Path(name).is_dir() else None


class RefusesFolders:
    """The path of a folder is no name, and so an error."""

    def resolve(self, name: str) -> Path | None:
        if name.startswith("/"):
            raise CheckpointError(name, ["A name does not begin with a slash."])
        return None


class CopiesEachTime:
    """Every call unpacks the files into a new folder."""

    folders: ClassVar[list[TemporaryDirectory[str]]] = []

    def resolve(self, name: str) -> Path | None:
        if name != KNOWN:
            return None
        self.folders.append(TemporaryDirectory())
        folder = Path(self.folders[-1].name)
        (folder / "config.json").write_text("{}")
        return folder


class KnowsItNoMore:
    """It does not have what it is said to know."""

    def resolve(self, name: str) -> Path | None:
        return None


class FindsAnEmptyFolder:
    """The folder holds no description of a model."""

    folder = Path(__file__).parent

    def resolve(self, name: str) -> Path | None:
        return self.folder if name == KNOWN else None


def _mutant(check: AnyCheck, kind: Callable[[], ModelSource]) -> Mutant:
    name = (kind.__doc__ or "").strip().rstrip(".")
    known = (KNOWN,) if check is sources.check_sources_find_what_they_know else ()
    return Mutant(name=name, check=check, subject=lambda: ModelSourceSubject(name="mutant", factory=kind, known=known))


_TABLE: tuple[tuple[AnyCheck, tuple[Callable[[], ModelSource], ...]], ...] = (
    (
        sources.check_sources_pass_unknown_names_on,
        (RaisesItsOwn, SaysNothing, ClaimsEverything, FallsBack, LooksItUp),
    ),
    (sources.check_sources_leave_folders_to_their_paths, (ReturnsText, TakesTheParent, RefusesFolders)),
    (sources.check_sources_find_what_they_know, (CopiesEachTime, KnowsItNoMore, FindsAnEmptyFolder)),
)

MUTANTS: tuple[Mutant, ...] = tuple(_mutant(check, kind) for check, kinds in _TABLE for kind in kinds)
