"""Writes the tables of keys, models and strategies, the reference of the plugin API and that of the checks.

They come from the schema, from the plugins, and from docstrings: `python docs/render.py` does it.
"""

from __future__ import annotations

import ast
import enum
import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import attrs

from diffulex_core import plugin
from diffulex_core.compat import missing_capabilities
from diffulex_core.config.describe import allowed, not_built, type_name
from diffulex_core.config.schema import KeySpec, build_schema, core_sections
from diffulex_core.host import Host

PAGE = Path(__file__).parent / "configuration.md"
MODELS = Path(__file__).parent / "models.md"
STRATEGIES = Path(__file__).parent / "strategies" / "index.md"
API = Path(__file__).parent / "plugin-api.md"
CONFORMANCE = Path(__file__).parent / "conformance.md"
FIRST_PARTY = "diffulex-"
BEGIN, END = "<!-- tables: begin, written by docs/render.py -->\n", "<!-- tables: end -->\n"


def render() -> str:
    """The page of keys with its tables as the schema has them now."""
    return _with_tables(PAGE, _tables())


def render_models() -> str:
    """The page of models with its table as this repository's plugins register them now."""
    return _with_tables(MODELS, _families())


def render_strategies() -> str:
    """The page of strategies with its table as this repository's plugins register them now."""
    return _with_tables(STRATEGIES, _fits())


def render_api() -> str:
    """The page of the plugin API with its reference as the docstrings have it now."""
    return _with_tables(API, _reference())


def render_conformance() -> str:
    """The page of the conformance kit with what its checks say of themselves now."""
    return _with_tables(CONFORMANCE, _checks())


def _with_tables(page: Path, tables: Iterator[str]) -> str:
    before, rest = page.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    text = "\n".join(tables)
    return f"{before}{BEGIN}{text}\n\n{END}{after}"


def _families() -> Iterator[str]:
    heads = (
        "`model_name`",
        "Plugin",
        "`architectures`",
        "`model_type`",
        "Also called",
        "Logits",
        "Default strategy",
        "Provides",
    )
    yield f"\n| {' | '.join(heads)} |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    for entry in Host.discover(environ={}).models.entries():
        family = entry.descriptor
        if entry.provenance.dist.startswith(FIRST_PARTY):
            cells = (
                _code(family.name),
                entry.provenance.dist,
                _code(*family.architectures),
                _code(*family.model_types),
                _code(*family.aliases),
                family.logits,
                _code(*filter(None, [family.default_strategy])),
                _code(*sorted(family.provides)),
            )
            yield f"| {' | '.join(cells)} |"


def _fits() -> Iterator[str]:
    """A row for each family, a column for each strategy in each mode."""
    host = Host.discover(environ={})
    recipes = [
        (
            entry.descriptor.name if mode is None else f"{entry.descriptor.name}, {mode}",
            entry.descriptor.in_mode(mode or ""),
        )
        for entry in sorted(host.strategies.entries(), key=lambda entry: entry.descriptor.name)
        if entry.provenance.dist.startswith(FIRST_PARTY)
        for mode in (None, *(mode for mode in entry.descriptor.modes if "sampling_mode" not in entry.descriptor.forces))
    ]
    yield f"\n| `model_name` | {' | '.join(_code(*name.split(', ')) for name, _ in recipes)} |"
    yield f"| --- |{' --- |' * len(recipes)}"
    for entry in host.models.entries():
        family = entry.descriptor
        if entry.provenance.dist.startswith(FIRST_PARTY):
            cells = (
                "default" if name == family.default_strategy else "" if missing_capabilities(family, recipe) else "yes"
                for name, recipe in recipes
            )
            yield f"| {_code(family.name)} | {' | '.join(cells)} |"


def _code(*names: str) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _tables() -> Iterator[str]:
    for section in core_sections():
        yield f"\n### `{section.name}`\n"
        yield f"{(section.cls.__doc__ or '').partition(chr(10))[0]}\n"
        yield "| Key | Type | Default | Allowed | Meaning |"
        yield "| --- | --- | --- | --- | --- |"
        for spec in build_schema([section]):
            cells = (f"`{spec.name}`", type_name(spec.kind), f"`{_plain(spec.default)}`", allowed(spec), _meaning(spec))
            yield f"| {' | '.join(cell.replace('|', ' or ') for cell in cells)} |"


def _meaning(spec: KeySpec) -> str:
    names = ", ".join(f"`{name}`" for name in spec.other_names)
    return " ".join(part for part in (spec.info.help, f"Also: {names}." if names else "", not_built(spec)) if part)


def _plain(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case tuple():
            return f"[{', '.join(map(_plain, value))}]"
        case _:
            return str(value) or '""'


WRITTEN_BY_HAND = (
    "AttentionBackendPlugin", "Capability", "Component", "DecodingStrategy", "ModelFamily", "SamplerTraits",
    "SamplingMode",
)  # fmt: skip
"""Descriptors stand on the page with more than their docstrings say."""


def _reference() -> Iterator[str]:
    offered = {name: getattr(plugin, name) for name in sorted(plugin.__all__) if name not in WRITTEN_BY_HAND}
    classes = {name: value for name, value in offered.items() if inspect.isclass(value)}
    errors = [name for name, value in classes.items() if issubclass(value, Exception)]
    patterns = [name for name, value in classes.items() if value.__module__.endswith(".pattern")]
    protocols = [name for name, value in classes.items() if _is_protocol(value) and name not in patterns]
    values = [name for name in classes if name not in (*errors, *patterns, *protocols)]
    for heading, lead, names in (
        (
            "Protocols",
            "What parts of an engine satisfy. Any class with these members does; none need be inherited.",
            protocols,
        ),
        ("Values", "Frozen values that parts are handed or hand on.", values),
        ("Attention patterns", "Who sees whom, in whole numbers.", patterns),
    ):
        yield f"\n## {heading}\n\n{lead}"
        for name in names:
            yield from _class_entry(name, classes[name])
    yield "\n## Names\n"
    yield "| Name | Meaning |\n| --- | --- |"
    for name, value in offered.items():
        if name not in classes:
            yield f"| `{name}` | {_cell(inspect.getdoc(value) if inspect.isfunction(value) else _said_of(name))} |"
    yield f"\nThe errors are described on [a page of their own](errors.md): {_code(*errors)}."


def _class_entry(name: str, value: type) -> Iterator[str]:
    text = inspect.cleandoc(value.__doc__ or "")
    lead = text.partition("Attributes:\n")[0]
    yield f"\n### `{name}`\n\n{lead.strip()}\n"
    inherited = [base.__name__ for base in value.__bases__ if base.__name__ in plugin.__all__]
    if inherited:
        yield f"It has everything that {_code(*inherited)} has, and:\n"
    if issubclass(value, enum.Enum):
        yield f"One of {_code(*(str(member.value) for member in value))}."
        return
    rows = list(_members(value)) if _is_protocol(value) else list(_fields(value))
    if rows:
        yield f"| {'Member' if _is_protocol(value) else 'Field'} | Meaning |\n| --- | --- |"
        yield from rows


def _members(value: type) -> Iterator[str]:
    """A row for each member of a protocol, with its whole docstring."""
    for name, member in vars(value).items():
        if isinstance(member, property):
            getter: Callable[..., object] = member.fget  # type: ignore[assignment]  # protocols' properties have one
            yield f"| `{name}: {_type(inspect.signature(getter).return_annotation)}` | {_cell(member.__doc__)} |"
        elif inspect.isfunction(member) and (not name.startswith("_") or name == "__call__"):
            given = list(inspect.signature(member).parameters)[1:]
            yield f"| `{name}({', '.join(given)})` | {_cell(inspect.getdoc(member))} |"


def _fields(value: type) -> Iterator[str]:
    """A row for each attribute, with type, default and what the docstring says of it."""
    said: dict[str, str] = {}
    # Fields may be inherited, and what is said of them with them.
    attributes = "\n".join(inspect.cleandoc(base.__doc__ or "") for base in value.__mro__ if attrs.has(base))
    for names, text in re.findall(r"^    (\w+(?:, \w+)*): (.*(?:\n        .*)*)", attributes, re.MULTILINE):
        said |= dict.fromkeys(names.split(", "), text)
    for field in attrs.fields(value) if attrs.has(value) else ():
        default = (
            ""
            if field.default is attrs.NOTHING or isinstance(field.default, attrs.Factory)
            else f" = {field.default!r}"
        )
        yield f"| `{field.name}: {_type(field.type)}{default}` | {_cell(said.get(field.name))} |"


def _is_protocol(value: type) -> bool:
    return vars(value).get("_is_protocol", False) is True


def _type(annotation: object) -> str:
    text = (
        annotation
        if isinstance(annotation, str)
        else annotation.__name__
        if inspect.isclass(annotation)
        else str(annotation)
    )
    return text.replace("|", "or")


def _cell(text: str | None) -> str:
    """A docstring in one cell of a table."""
    line = " ".join((text or "").split()).replace("|", "or")
    return re.sub(r" (Args|Returns|Raises):", r"<br>*\1:*", line)


def _said_of(name: str) -> str:
    """The text that stands below the assignment that makes a published name."""
    for node in ast.parse(inspect.getsource(plugin)).body:
        if isinstance(node, ast.ImportFrom) and any(name == each.name for each in node.names):
            body = ast.parse(inspect.getsource(importlib.import_module(str(node.module)))).body
            for made, text in pairwise(body):
                if isinstance(made, ast.Assign) and ast.unparse(made.targets[0]) == name:
                    match text:
                        case ast.Expr(value=ast.Constant(value=str(said))):
                            return said
    raise LookupError(f"nothing is said of {name}; write it below the assignment")


def _checks() -> Iterator[str]:
    from diffulex_core.testing.catalogue import CHECKS

    for subject in dict.fromkeys(check.subject for check in CHECKS):
        yield f"\n### {(subject.__doc__ or '').partition(chr(10))[0].rstrip('.')}\n"
        for check in CHECKS:
            if check.subject is not subject:
                continue
            yield f"\n#### `{check.name}`\n"
            yield f"{check.level.capitalize()}, from the tier {check.tier} on.\n"
            paragraphs = [" ".join(part.split()) for part in check.text.split("\n\n")]
            told = "\n\n".join(paragraphs).replace(" Fix: ", "\n\nFix: ")
            yield re.sub(r"^(Why|Fix):", r"*\1:*", told, flags=re.MULTILINE)


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
    MODELS.write_text(render_models(), encoding="utf-8")
    STRATEGIES.write_text(render_strategies(), encoding="utf-8")
    API.write_text(render_api(), encoding="utf-8")
    CONFORMANCE.write_text(render_conformance(), encoding="utf-8")
