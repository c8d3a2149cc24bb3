"""Checks of model sources: what they say of names that they know, and of names that they do not."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn
from unittest import mock

from diffulex_core.errors import CheckpointError
from diffulex_core.testing.check import AnyCheck, CheckFailed, check
from diffulex_core.testing.effort import Effort
from diffulex_core.testing.patience import patience
from diffulex_core.testing.subjects import ModelSourceSubject

STRANGE = (
    "no-such-model", "no-such-owner/no-such-model", "./no-such-folder", "/no/such/folder", "~/no-such-folder",
    "a/b/c/d", "no-such-model/", "no such model", "模型", "no-such-model:tag", "~no-such-user/model",
    "s3://bucket/no-such-model", "-", "%s",
    "no-such-model" * 40,
)  # fmt: skip
"""Names that nobody has."""


@contextmanager
def _without_network() -> Iterator[None]:
    """Whoever looks for another machine is told that there is none."""

    def refuse(*arguments: Any, **named: Any) -> NoReturn:
        raise OSError("the network is out of reach")

    with (
        mock.patch.object(socket, "getaddrinfo", refuse),
        mock.patch.object(socket, "create_connection", refuse),
        mock.patch.object(socket.socket, "connect", refuse),
    ):
        yield


def _resolve(subject: ModelSourceSubject, name: str) -> Path | None:
    """The folder; None where the source passes the name on.

    Raises:
        CheckpointError: the name is the source's, but its files cannot be had.
    """
    try:
        with _without_network(), patience(f"resolve({name!r})", busy=20, idle=120):
            found = subject.factory().resolve(name)
    except CheckpointError as error:
        if name not in str(error) or not error.problems or not all(problem.strip() for problem in error.problems):
            raise CheckFailed(
                f"the error about {name!r} does not say which name, and what is wrong: {error}"
            ) from error
        raise
    except Exception as error:
        raise CheckFailed(
            f"resolve({name!r}) raises {type(error).__name__}: {error}. Return None for names of others, and raise "
            "CheckpointError where a model of yours cannot be had."
        ) from error
    if found is not None and not (isinstance(found, Path) and found.is_dir()):
        raise CheckFailed(f"resolve({name!r}) is {found!r}; expected is None, or the Path of a directory that exists")
    return found


def _knows_nothing(subject: ModelSourceSubject) -> str | None:
    return None if subject.known else "nobody said which names it knows (`ModelSourceConformance.known_names`)"


@check(ModelSourceSubject)
def check_sources_pass_unknown_names_on(subject: ModelSourceSubject, effort: Effort) -> None:
    """For a name that nobody has it returns None, or raises a CheckpointError that tells the name and what is wrong.

    It is asked without a network, and twice.

    Why: all sources are asked in turn. One that raises something else, or claims what it does not have, keeps users
    from the models of all others.
    Fix: claim names by a prefix of your own; return None for all others, and catch what your libraries raise.
    """
    for name in STRANGE:
        said = list[str]()
        for _ in range(2):
            try:
                found = _resolve(subject, name)
            except CheckpointError as error:
                said.append(str(error))
                continue
            if found is not None:
                raise CheckFailed(f"resolve({name!r}) is {str(found)!r}, but there is no such model")
            said.append("")
        if said[0] != said[1]:
            raise CheckFailed(f"asked again for {name!r} it says {said[1]!r}, and before {said[0]!r}")


@check(ModelSourceSubject)
def check_sources_leave_folders_to_their_paths(subject: ModelSourceSubject, effort: Effort) -> None:
    """The path of a directory means that directory, or nothing to this source.

    Why: users give the path of a checkpoint. Whoever turns it into another model runs weights that nobody asked for.
    Fix: return None for what looks like a path.
    """
    with TemporaryDirectory() as name:
        folder = Path(name) / "model"
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        try:
            found = _resolve(subject, str(folder))
        except CheckpointError as error:
            raise CheckFailed(f"the path of a directory is refused: {error}") from error
        if found is not None and found.resolve() != folder.resolve():
            raise CheckFailed(f"resolve({str(folder)!r}) is {str(found)!r}, another directory")


@check(ModelSourceSubject, when=_knows_nothing)
def check_sources_find_what_they_know(subject: ModelSourceSubject, effort: Effort) -> None:
    """A name that it knows means one directory, with a config.json in it: asked again, and asked of another source.

    It is asked without a network.

    Why: worker processes and the next start ask again, and must find the same weights.
    Fix: return where the files stand for good, not a temporary copy.
    """
    for name in subject.known:
        try:
            found = [_resolve(subject, name) for _ in range(2)]
        except CheckpointError as error:
            raise CheckFailed(f"{name!r} is said to be known, but: {error}") from error
        if found[0] is None or found[0] != found[1]:
            raise CheckFailed(f"resolve({name!r}) is {found[0]!r}, and asked again {found[1]!r}")
        if not any((found[0] / each).is_file() for each in ("config.json", "adapter_config.json")):
            raise CheckFailed(
                f"{str(found[0])!r}, which {name!r} means, holds neither config.json nor adapter_config.json"
            )


CHECKS: tuple[AnyCheck, ...] = (
    check_sources_pass_unknown_names_on,
    check_sources_leave_folders_to_their_paths,
    check_sources_find_what_they_know,
)
