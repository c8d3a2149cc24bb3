"""Broken subjects for the checks of `diffulex_core.testing.checks.plugins`."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager

from diffulex_core.testing.check import Check
from diffulex_core.testing.checks import plugin_options as options, plugins as checks
from diffulex_core.testing.subjects import PluginSubject
from tests.conformance.installed_plugin import METADATA, OPTIONS, PARTS, PLUGIN, installed, subject
from tests.conformance.mutant import Mutant

CODE, IMPLEMENTATION, KEYS = (f"diffulex_throwaway/{name}.py" for name in ("plugin", "parts", "options"))
INFO = "diffulex_throwaway-1.0.dist-info/METADATA"


def _with(check: Check[PluginSubject], what: str, changed: Mapping[str, str], without: str | None = None) -> Mutant:
    def around() -> AbstractContextManager[None]:
        return installed(changed, without=without)

    return Mutant(name=what, check=check, subject=subject, around=around)


def _edited(check: Check[PluginSubject], what: str, name: str, old: str, new: str) -> Mutant:
    """The plugin with one place of one file changed."""
    text = {CODE: PLUGIN, IMPLEMENTATION: PARTS, KEYS: OPTIONS, INFO: METADATA}[name]
    assert old in text, f"{what}: {old!r} is not in {name}"
    return _with(check, what, {name: text.replace(old, new)})


def _begins(check: Check[PluginSubject], what: str, name: str, code: str) -> Mutant:
    """The plugin with something done when a file is imported."""
    text = {CODE: PLUGIN, IMPLEMENTATION: PARTS, KEYS: OPTIONS}[name]
    return _with(check, what, {name: f"{code}\n{text}"})


FAMILY = 'name="throwaway_family",'

MUTANTS: tuple[Mutant, ...] = (
    _begins(checks.check_plugin_is_loaded, "cannot be imported", CODE, "import no_such_package"),
    _edited(checks.check_plugin_is_loaded, "misspells a hook", CODE, "validate_config", "validate_conf"),
    _edited(checks.check_plugin_is_loaded, "takes a name of another plugin", CODE, FAMILY, 'name="kit_decoder",'),
    _begins(checks.check_plugin_discovery_is_light, "imports torch at discovery", CODE, "import torch"),
    _begins(checks.check_plugin_discovery_is_light, "imports torch for its keys", KEYS, "import torch"),
    _edited(checks.check_plugin_discovery_is_light, "imports torch for commands", CODE, "    pass", "    import torch"),
    _begins(
        checks.check_plugin_discovery_is_light, "sets a variable", CODE,
        "import os\nos.environ['TOKENIZERS_PARALLELISM'] = '0'"
    ),
    _begins(checks.check_plugin_discovery_is_light, "prints a greeting", CODE, "print('welcome')"),
    _begins(checks.check_plugin_discovery_is_light, "seeds random", CODE, "import random\nrandom.seed(0)"),
    _edited(
        checks.check_plugin_registers_the_same_every_time, "counts its registrations", CODE,
        FAMILY, f'{FAMILY} defaults={{"max_num_reqs": COUNTER.pop()}},',
    ),
    _edited(
        checks.check_plugin_registers_the_same_every_time, "registers the process's number", CODE,
        FAMILY, f'{FAMILY} aliases=("throwaway%d" % __import__("os").getpid(),),',
    ),
    _edited(
        checks.check_plugin_registers_the_same_every_time, "registers once only", CODE,
        "    register(Component(", "    SEEN.append(1)\n    len(SEEN) > 1 or register(Component(",
    ),
    _edited(checks.check_plugin_references_resolve, "misspells an attribute", CODE, "parts:WEIGHTS", "parts:WEIGHT"),
    _edited(checks.check_plugin_references_resolve, "names a module that is not there", CODE, "options:", "option:"),
    _edited(
        checks.check_plugin_references_resolve, "names a sampler that nobody registers", CODE,
        'sampler="throwaway_sampler"', 'sampler="throwaway_sample"',
    ),
    _edited(
        checks.check_plugin_parts_fit_their_protocols, "its weights are a dict", CODE, "parts:WEIGHTS", "parts:TINY"
    ),
    _edited(
        checks.check_plugin_parts_fit_their_protocols, "its pattern has blocks of 8", IMPLEMENTATION,
        "BlockCausal(block_size=block_size)", "BlockCausal(block_size=8)",
    ),
    _edited(
        checks.check_plugin_parts_fit_their_protocols, "its request takes no context", IMPLEMENTATION,
        "prompt, params, context", "prompt, params",
    ),
    _edited(
        checks.check_plugin_parts_fit_their_protocols, "its sampler does not sample", CODE,
        "parts:Sampler", "parts:dict",
    ),
    _edited(
        checks.check_plugin_parts_fit_their_protocols, "its sampler takes no communicator", CODE,
        "parts:Sampler", "parts:alone",
    ),
    _begins(
        checks.check_plugin_imports_leave_no_trace, "seeds torch", IMPLEMENTATION, "import torch\ntorch.manual_seed(0)"
    ),
    _begins(
        checks.check_plugin_imports_leave_no_trace, "sets the default dtype", IMPLEMENTATION,
        "import torch\ntorch.set_default_dtype(torch.bfloat16)",
    ),
    _begins(
        checks.check_plugin_imports_leave_no_trace, "configures logging", IMPLEMENTATION,
        "import logging\nlogging.basicConfig(level=10)",
    ),
    _begins(
        checks.check_plugin_imports_leave_no_trace, "handles signals", KEYS,
        "import signal\nsignal.signal(signal.SIGTERM, lambda *_: None)",
    ),
    _edited(
        checks.check_plugin_descriptors_pickle, "holds a function", CODE,
        FAMILY, f'{FAMILY} defaults={{"max_num_reqs": lambda: 4}},',
    ),
    _edited(checks.check_plugin_is_packaged, "requires no range", INFO, "diffulex-core>=0.1,<0.2", "diffulex-core"),
    _edited(checks.check_plugin_is_packaged, "does not require the core", INFO, "diffulex-core>", "diffulex-cores>"),
    _edited(checks.check_plugin_is_packaged, "requires another core", INFO, ">=0.1,<0.2", ">=7"),
    _with(checks.check_plugin_is_packaged, "has no py.typed", {}, "diffulex_throwaway/py.typed"),
    _with(
        checks.check_plugin_is_packaged, "has two versions", {"diffulex_throwaway/__init__.py": '__version__ = "0.9"\n'}
    ),
    _edited(options.check_plugin_options_are_frozen_values, "its options can change", KEYS, "frozen", "define"),
    _edited(
        options.check_plugin_options_are_frozen_values, "a key has no default", KEYS,
        'throwaway_width: int = key(3, "How wide.")', "throwaway_width: int",
    ),
    _edited(
        options.check_plugin_options_are_frozen_values, "takes a key of the core", KEYS, "throwaway_width", "block_size"
    ),
    _edited(options.check_plugin_keys_have_help, "a key has no help", KEYS, '"How wide."', '""'),
    _edited(
        options.check_plugin_options_are_frozen_values, "its options are not values", KEYS,
        "attrs.frozen(kw_only=True)", "attrs.frozen(kw_only=True, eq=False)",
    ),
    _edited(options.check_plugin_configurations_round_trip, "a default is NaN", KEYS, "key(0.5", "key(float('nan')"),
    _edited(
        options.check_plugin_configurations_round_trip, "a descriptor's default is no plain number", CODE,
        FAMILY, f'{FAMILY} defaults={{"max_num_reqs": __import__("fractions").Fraction(4)}},',
    ),
    _edited(
        options.check_plugin_hooks_leave_others_alone, "expects its own options", CODE,
        "    return ()", "    return ['too wide'] if config.strategy_options.throwaway_width > 9 else ()",
    ),
    _edited(
        options.check_plugin_hooks_leave_others_alone, "objects to everything", CODE,
        "    return ()", "    return ['no']",
    ),
    _edited(
        options.check_plugin_hooks_leave_others_alone, "observes its own only", CODE,
        "    return None", "    return config.strategy_options.throwaway_width",
    ),
)  # fmt: skip
