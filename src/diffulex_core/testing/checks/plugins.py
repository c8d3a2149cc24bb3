"""Checks of whole plugins: light discovery, code that is there and fits, and what importing leaves behind."""

from __future__ import annotations

import base64
import importlib
import pickle
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import attrs
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from diffulex_core import __version__
from diffulex_core.discovery import CORE, read_plugin
from diffulex_core.errors import PluginError
from diffulex_core.testing.check import AnyCheck, CheckFailed, check
from diffulex_core.testing.checks import plugin_options
from diffulex_core.testing.effort import Effort
from diffulex_core.testing.fresh import cannot_be_found, discovered, imported
from diffulex_core.testing.plugin_parts import entries_of, is_not_loaded, missing_names, parts_of, refuse
from diffulex_core.testing.subjects import PluginSubject


def _has_no_distribution(subject: PluginSubject) -> str | None:
    if subject.record.given:
        return "it was handed over as a module, without a distribution"
    return "it is the core" if subject.record.provenance == CORE else is_not_loaded(subject)


@check(PluginSubject)
def check_plugin_is_loaded(subject: PluginSubject, effort: Effort) -> None:
    """The plugin is discovered, imported and registered, and nobody else claims one of its names.

    Why: a plugin that is quarantined contributes nothing, and users see an unknown-name error.

    Fix: the message holds the exception, or both owners of a contested name. `diffulex plugins list` shows the same.
    """
    record = subject.record
    if record.status != "loaded":
        raise CheckFailed(f"the plugin {record.provenance} is {record.status}: {record.reason}")
    if record.reason:
        raise CheckFailed(f"the plugin {record.provenance} lost a name: {record.reason}")


@check(PluginSubject, when=cannot_be_found)
def check_plugin_discovery_is_light(subject: PluginSubject, effort: Effort) -> None:
    """Discovery imports no torch and no other heavy package, prints nothing and leaves the process as it was.

    Why: every start of the command line and of every worker process discovers all plugins.

    Fix: in the plugin module import from `diffulex_core.plugin` and nothing that imports torch; name code as
    "package.module:attribute". Import heavy code inside commands, and keep `config_cls` and `check_config` in modules
    that import no torch: configurations are shown and checked without it.
    """
    found = discovered(subject)
    problems = []
    if found["heavy"]:
        problems.append(f"discovery imports {', '.join(found['heavy'])}")
    late = sorted(set(found["command line"]) - set(found["heavy"]))
    if late:
        problems.append(f"adding its commands imports {', '.join(late)}")
    if found["options"]:
        problems.append(f"importing config_cls or check_config imports {', '.join(found['options'])}")
    problems += [f"discovery changes {what}" for what in found["discovery"]]
    if found["printed"]:
        problems.append(f"discovery prints {found['printed'][:80]!r}")
    refuse(problems)


def _cannot_register_again(subject: PluginSubject) -> str | None:
    if subject.record.given and subject.record.provenance.module not in sys.modules:
        return "it was handed over as a module that cannot be imported"
    return is_not_loaded(subject)


@check(PluginSubject, when=_cannot_register_again)
def check_plugin_registers_the_same_every_time(subject: PluginSubject, effort: Effort) -> None:
    """Registering again, here and in a fresh interpreter, gives equal descriptors.

    Why: worker processes discover again and must find what the engine was assembled from.

    Fix: make descriptors of constants. Nothing that differs between processes or calls belongs into them: times,
    counters, random numbers, environment variables, what the machine has.
    """
    origin = subject.record.provenance
    module = importlib.import_module(origin.module)
    here = {_key(kind, entry.descriptor): entry.descriptor for kind, entry in entries_of(subject)}
    problems = []
    for _ in range(2):
        again = read_plugin(module, origin).descriptors
        names = {each.name: each for each in here.values()}
        for descriptor in again:
            before = names.get(descriptor.name)
            if descriptor not in here.values():
                problems.append(f"registered again, {descriptor.name!r} is {_difference(before, descriptor)}")
        if len(again) != len(here):
            problems.append(f"{len(here)} descriptors were registered first, {len(again)} when asked again")
    if cannot_be_found(subject) is None:
        for what, found in (("a fresh interpreter", "descriptors"), ("a second discovery in it", "again")):
            told: Mapping[str, str] = discovered(subject)[found]
            if told.keys() != here.keys():
                problems.append(f"{what} registers {sorted(told)}, here it is {sorted(here)}")
            for name in told.keys() & here.keys():
                if not told[name].startswith("!"):
                    other = pickle.loads(base64.b64decode(told[name]))
                    if other != here[name]:
                        problems.append(f"in {what} {name!r} is {_difference(here[name], other)}")
    refuse(problems[:3])


def _key(kind: str, descriptor: Any) -> str:
    return f"{kind} {descriptor.name}"


def _difference(before: Any, after: Any) -> str:
    if type(before) is not type(after):
        return "new"
    fields = [field.name for field in attrs.fields(type(before))]
    values = attrs.asdict(before, recurse=False), attrs.asdict(after, recurse=False)
    changed = [name for name in fields if values[0][name] != values[1][name]]
    told = [f"{name}: {values[0][name]!r} -> {values[1][name]!r}" for name in changed]
    return f"another one ({', '.join(told)})"


@check(PluginSubject, when=is_not_loaded)
def check_plugin_references_resolve(subject: PluginSubject, effort: Effort) -> None:
    """Every "package.module:attribute" of its descriptors can be imported, and every component that it names exists.

    Why: references are loaded on use, so a slip shows when a user selects the part, not when the plugin is installed.

    Fix: the message names the reference. Compare it with the file, and see that the wheel holds the module.
    """
    problems = missing_names(subject)
    for part in parts_of(subject):
        try:
            subject.host.load(part.reference, provenance=subject.record.provenance)
        except PluginError as error:
            foreign = isinstance(error.__cause__, ModuleNotFoundError) and not _own(subject, error.__cause__.name)
            if not (part.optional and foreign):
                problems.append(f"{part}: {error}")
    refuse(problems)


def _own(subject: PluginSubject, module: str | None) -> bool:
    top = subject.record.provenance.module.partition(".")[0]
    return module is None or module.partition(".")[0] == top


@check(PluginSubject, when=is_not_loaded)
def check_plugin_parts_fit_their_protocols(subject: PluginSubject, effort: Effort) -> None:
    """What a reference names is what its field promises: callable so, or an object with these methods.

    Why: the engine calls it by that contract, in the middle of assembly or of a step.

    Fix: docs/plugins.md lists for every field and every kind of component how it is called and what it returns; the
    protocols stand in `diffulex_core.plugin`.
    """
    problems = []
    for part in parts_of(subject):
        try:
            code = subject.host.load(part.reference, provenance=subject.record.provenance)
        except PluginError:
            continue  # check_plugin_references_resolve tells
        try:
            reason = part.judge(code)
        except Exception as error:  # noqa: BLE001 - a stranger's code may raise anything
            reason = f"cannot be used: {type(error).__name__}: {error}"
        if reason is not None:
            problems.append(f"{part} {reason}")
    refuse(problems)


@check(PluginSubject, when=cannot_be_found)
def check_plugin_imports_leave_no_trace(subject: PluginSubject, effort: Effort) -> None:
    """Importing its implementation modules changes nothing of the process.

    Default dtype and device, random generators, environment variables, signal handlers, the root logger, threads and
    the working directory stay as they are.

    Why: an engine is a guest in somebody's program. A seed or a default dtype set at import changes what others
    compute.

    Fix: do such things inside the functions that need them and undo them there, or leave them to the application.
    """
    modules = {part.module for part in parts_of(subject) if not part.optional}
    own = tuple(sorted(modules))
    problems = [f"importing {module} {what}" for module, found in imported(subject, own).items() for what in found]
    refuse(problems)


@check(PluginSubject, when=is_not_loaded)
def check_plugin_descriptors_pickle(subject: PluginSubject, effort: Effort) -> None:
    """Descriptors come back equal from a pickle.

    Why: configurations hold descriptors and travel to worker processes.

    Fix: put only plain values into `defaults`, `forces`, `presets` and the like; no functions, no tensors.
    """
    problems = []
    for kind, entry in entries_of(subject):
        try:
            again = pickle.loads(pickle.dumps(entry.descriptor))
        except Exception as error:  # noqa: BLE001 - a stranger's value may raise anything
            problems.append(f"{kind} {entry.descriptor.name!r} cannot be pickled: {type(error).__name__}: {error}")
            continue
        if again != entry.descriptor:
            problems.append(f"{kind} {entry.descriptor.name!r} comes back as {_difference(entry.descriptor, again)}")
    refuse(problems)


@check(PluginSubject, when=_has_no_distribution)
def check_plugin_is_packaged(subject: PluginSubject, effort: Effort) -> None:
    """Its distribution says which versions of diffulex-core it works with and is typed; versions agree.

    Why: without a range, an upgrade of the core breaks installations instead of being refused by the installer.

    Fix: `dependencies = ["diffulex-core>=0.1,<0.2"]` in pyproject.toml, an empty file `py.typed` in the package, and
    where the package has a `__version__`, the one of pyproject.toml.
    """
    origin = subject.record.provenance
    try:
        dist = distribution(origin.dist)
    except PackageNotFoundError as error:
        raise CheckFailed(f"the distribution {origin.dist!r} has no metadata; reinstall it.") from error
    problems = []
    wanted = [Requirement(text) for text in dist.requires or []]
    core = [each for each in wanted if canonicalize_name(each.name) == CORE.dist]
    if not core:
        problems.append(f"{dist.name} does not require diffulex-core")
    elif not any(str(each.specifier) for each in core):
        problems.append(f"{dist.name} requires diffulex-core in any version; give a range")
    elif not all(each.specifier.contains(__version__, prereleases=True) for each in core):
        problems.append(f"{dist.name} requires diffulex-core {core[0].specifier}, and this is {__version__}")
    package = importlib.import_module(origin.module.partition(".")[0])
    version = vars(package).get("__version__")
    if version is not None and version != dist.version:
        problems.append(f"{package.__name__}.__version__ is {version!r}, the distribution's is {dist.version!r}")
    folders = [Path(each) for each in vars(package).get("__path__", [])]
    if folders and not any((folder / "py.typed").is_file() for folder in folders):
        problems.append(f"the package {package.__name__} has no py.typed")
    refuse(problems)


CHECKS: tuple[AnyCheck, ...] = (
    check_plugin_is_loaded,
    check_plugin_discovery_is_light,
    check_plugin_registers_the_same_every_time,
    check_plugin_references_resolve,
    check_plugin_parts_fit_their_protocols,
    *plugin_options.CHECKS,
    check_plugin_imports_leave_no_trace,
    check_plugin_descriptors_pickle,
    check_plugin_is_packaged,
)
