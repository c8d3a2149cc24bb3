"""What can be used is documented: hooks, descriptor fields, errors, and the README's commands."""

from __future__ import annotations

import inspect
import re
import runpy
from pathlib import Path
from types import ModuleType
from typing import get_args

import attrs
import pytest

from diffulex_core import errors, hookspecs, plugin
from diffulex_core.host import Host
from diffulex_core.sampling_params import SamplingParams
from diffulex_core.testing.bases import Conformance
from diffulex_core.testing.catalogue import CHECKS
from diffulex_tiny.problems import MAX_OPERAND, split_of

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted(ROOT.glob("docs/**/*.md")),
    *sorted(ROOT.glob("plugins/*/README.md")),
]
HOOKS = [name for name, value in vars(hookspecs).items() if name.startswith("diffulex_") and inspect.isfunction(value)]
DESCRIPTORS = [
    plugin.ModelFamily,
    plugin.DecodingStrategy,
    plugin.AttentionBackendPlugin,
    plugin.Component,
    plugin.SamplerTraits,
    plugin.SamplingMode,
]
DEMO = "python -m pip install nox && python -m nox -s demo"
TESTS = "python -m pip install nox && python -m nox -s tests"


def read(name: str) -> str:
    return (ROOT / name).read_text()


def section(page: str, heading: str) -> str:
    """The text below a heading, to the next heading of its level or above."""
    found = re.search(rf"^(#+) `?{re.escape(heading)}`?$", page, re.MULTILINE)
    assert found, f"no heading {heading!r}"
    rest = page[found.end() :]
    end = re.search(rf"^#{{1,{len(found[1])}}} ", rest, re.MULTILINE)
    return rest[: end.start()] if end else rest


def code_blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_has_an_entry_that_shows_its_arguments(hook: str) -> None:
    entry = section(read("docs/plugin-api.md"), hook)
    arguments = inspect.signature(getattr(hookspecs, hook)).parameters
    assert f"{hook}({', '.join(arguments)})" in entry


def test_no_hook_is_documented_that_does_not_exist() -> None:
    assert set(re.findall(r"^#+ `(diffulex_\w+)`$", read("docs/plugin-api.md"), re.MULTILINE)) == set(HOOKS)


@pytest.mark.parametrize("descriptor", DESCRIPTORS, ids=lambda descriptor: descriptor.__name__)
def test_the_fields_of_a_descriptor_are_documented_and_no_others(descriptor: type) -> None:
    entry = section(read("docs/plugin-api.md"), descriptor.__name__)
    rows = re.findall(r"^\| (`[^|]+) \|", entry, re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == {
        field.name for field in attrs.fields(descriptor)
    }


def test_every_kind_of_component_and_every_capability_is_documented() -> None:
    page = read("docs/plugin-api.md")
    for kind in get_args(plugin.ComponentKind):
        assert f"| `{kind}` |" in section(page, "Component kinds")
    capabilities = {value for name, value in vars(plugin.Capability).items() if name.isupper()}
    assert set(re.findall(r"^\| `(\w+)` \|", section(page, "Capabilities"), re.MULTILINE)) == capabilities


def test_every_error_is_documented_and_no_others() -> None:
    defined = {
        name for name, value in vars(errors).items() if inspect.isclass(value) and value.__module__ == errors.__name__
    }
    assert set(re.findall(r"^#+ `(\w+)`$", read("docs/errors.md"), re.MULTILINE)) == defined


def test_the_first_plugin_of_the_guide_registers_its_family() -> None:
    module = ModuleType("diffulex_example")
    exec(code_blocks(read("docs/plugins.md"), "python")[0], vars(module))
    host = Host.discover(extra=[module])
    assert "example" in host.models
    assert host.quarantined == ()


@pytest.mark.parametrize("page", ["docs/plugins.md", "docs/plugin-api.md", "docs/conformance.md"])
def test_every_example_of_the_guide_and_the_reference_runs(page: str) -> None:
    for block in code_blocks(read(page), "python"):
        exec(block, {"__name__": "diffulex_example"})


def test_the_tables_of_configuration_keys_are_those_of_the_schema() -> None:
    done = runpy.run_path(str(ROOT / "docs/render.py"))
    assert read("docs/configuration.md") == done["render"](), "run `python docs/render.py`"


def test_the_keys_of_a_family_stand_on_the_page_of_models() -> None:
    host = Host.discover(environ={})
    keys = [
        field.name
        for entry in host.models.entries()
        if entry.descriptor.config_cls is not None and entry.provenance.dist.startswith("diffulex-")
        for field in attrs.fields(host.load(entry.descriptor.config_cls, provenance=entry.provenance))
    ]
    page = read("docs/models.md")
    assert [name for name in keys if f"| `{name}` |" not in page] == []


def test_the_table_of_model_families_is_what_the_plugins_register() -> None:
    done = runpy.run_path(str(ROOT / "docs/render.py"))
    assert read("docs/models.md") == done["render_models"](), "run `python docs/render.py`"


def test_the_reference_of_the_plugin_api_is_what_its_docstrings_say() -> None:
    done = runpy.run_path(str(ROOT / "docs/render.py"))
    assert read("docs/plugin-api.md") == done["render_api"](), "run `python docs/render.py`"


def test_everything_that_plugins_may_import_is_described() -> None:
    page = read("docs/plugin-api.md")
    entries = set(re.findall(r"^#+ `(\w+)`$", page, re.MULTILINE)) | set(
        re.findall(r"^\| `(\w+)` \|", section(page, "Names"), re.MULTILINE)
    )
    described = entries | set(re.findall(r"^#+ `(\w+)`$", read("docs/errors.md"), re.MULTILINE)) | {"Capability"}
    assert set(plugin.__all__) - described == set()
    assert re.findall(r"^.*\|\s*\|$", page, re.MULTILINE) == []


def test_the_page_of_checks_is_what_they_say_of_themselves() -> None:
    done = runpy.run_path(str(ROOT / "docs/render.py"))
    assert read("docs/conformance.md") == done["render_conformance"](), "run `python docs/render.py`"


def test_every_check_is_described_with_why_and_how_to_repair() -> None:
    page = section(read("docs/conformance.md"), "Checks")
    for check in CHECKS:
        entry = section(page, check.name)
        assert "\n*Why:* " in entry
        assert "\n*Fix:* " in entry


def test_every_test_class_of_the_kit_is_listed_with_the_fixtures_that_make_its_subject() -> None:
    listed = dict(
        re.findall(
            r"^\| `(\w+Conformance)` \| (.*) \|$", section(read("docs/conformance.md"), "Four ways in"), re.MULTILINE
        )
    )
    for base in Conformance.__subclasses__():
        if base.__module__.startswith("diffulex_core."):
            wanted = set(inspect.signature(vars(base)["subject"]._get_wrapped_function()).parameters) - {"self"}
            assert set(re.findall(r"`([a-z_]+)`", listed.pop(base.__name__))) == wanted
    assert not listed


@pytest.mark.parametrize("heading", ["Families", "Family by family"])
def test_every_model_family_has_a_row(heading: str) -> None:
    last_table = section(read("docs/models.md"), heading).rstrip().rpartition("\n\n")[2]
    documented = re.findall(r"^\| `(\w+)` \|", last_table.partition("---")[2], re.MULTILINE)
    registered = Host.discover(environ={}).models.entries()
    assert sorted(documented) == sorted(
        entry.descriptor.name for entry in registered if entry.provenance.dist.startswith("diffulex-")
    )


def test_what_the_page_of_models_calls_verified_are_tests_that_exist() -> None:
    named = re.findall(r"`([\w/]+\.py)(?:::(\w+))?`", section(read("docs/models.md"), "What was verified, and how"))
    assert len(named) > 15
    for path, name in named:
        assert f"def {name}" in read(path) if name else (ROOT / path).is_file(), f"{path}::{name}"


def test_the_sampling_parameters_are_documented_with_their_defaults_and_no_others() -> None:
    table = section(read("docs/configuration.md"), "Sampling parameters")
    documented = dict(re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", table, re.MULTILINE))
    given = SamplingParams()
    assert documented == {
        field.name: repr(value)
        for field, value in zip(attrs.fields(SamplingParams), attrs.astuple(given, recurse=False), strict=True)
    }


def test_the_readme_gives_the_two_commands_and_continuous_integration_runs_the_second() -> None:
    commands = code_blocks(read("README.md"), "bash")
    assert [DEMO + "\n" in block for block in commands].count(True) == 1
    assert [TESTS + "\n" in block for block in commands].count(True) == 1
    assert TESTS in read(".ci/run").splitlines()


def test_the_problems_shown_to_users_were_not_trained_on() -> None:
    shown = "\n".join(read(page) for page in ("README.md", "noxfile.py", "plugins/diffulex/README.md"))
    stories = [re.findall(r"\d+", story) for story in re.findall(r'"Q: ([^"]+?)[."]*"', shown)]
    operands = {tuple(map(int, numbers)) for numbers in stories if numbers}
    assert len(operands) >= 5
    for first, second, third in operands:
        assert split_of((first, second, third)) == "eval"
        assert max(first, second, third) <= MAX_OPERAND


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_python_of_a_page_compiles_and_its_links_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    for block in code_blocks(text, "python"):
        compile(block, page.name, "exec")
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text)
    local = [target for target in targets if not target.startswith(("http://", "https://"))]
    assert [target for target in local if not (page.parent / target).exists()] == []
