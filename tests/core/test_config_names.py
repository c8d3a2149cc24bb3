"""Which family and strategy are chosen, which keys they bring, and what is said when they cannot be chosen."""

from __future__ import annotations

from types import ModuleType

import attrs
import pytest

from diffulex_core.config import Origin, resolve, structure, unstructure
from diffulex_core.config.describe import installed_sections, installed_sizes, json_schema
from diffulex_core.errors import ConfigError, IncompatibleError, PluginError
from diffulex_core.host import Host
from diffulex_core.plugin import Capability, SamplingMode, hookimpl
from tests.core.config_kit import (
    ALPHA,
    ALPHA_OWN,
    BETA,
    BLOCKS,
    CHECKPOINT,
    PAIRS,
    PREFIX,
    AlphaOptions,
    PairsOptions,
    configure,
    make_host,
    problems_of,
)


@attrs.frozen(kw_only=True)
class ClashingOptions:
    page_size: int = 3


WIDE = attrs.evolve(ALPHA, sizes=(256, 64))
HALVES = attrs.evolve(BLOCKS, name="halves", aliases=(), sizes=(2, 64))


@attrs.frozen(kw_only=True)
class OptionsWithoutDefault:
    heat: float


def test_the_family_is_inferred_from_the_architecture() -> None:
    config = configure()
    assert config.family is ALPHA
    assert config.model.model_name == "alpha"
    assert config.origins["model_name"] == Origin(source="checkpoint", detail="config.json")


SETTLED = attrs.evolve(
    ALPHA,
    aliases=("alpha_chat", "alpha_hot", "alpha_pairs"),
    alias_settings={"alpha_hot": {"heat": 0.75}, "alpha_pairs": {"decoding_strategy": "pairs", "buffer_size": 7}},
)


def test_an_alias_settles_what_the_checkpoint_does_not_tell() -> None:
    host = make_host(families=(SETTLED, BETA))
    config = configure({"model_name": "alpha_hot"}, host=host, generation_config={"heat": 0.25})
    assert config.family_options.heat == 0.75
    assert config.origins["heat"] == Origin(source="family", detail="alpha_hot")
    assert configure({"model_name": "alpha_hot", "alpha_heat": 0.75}, host=host).warnings == ()
    for name in ("alpha", "alpha_chat"):
        assert configure({"model_name": name}, host=host).family_options.heat == 0.5
    pairs = configure({"model_name": "alpha_pairs"}, host=host)
    assert (pairs.strategy.name, pairs.decoding.buffer_size) == ("pairs", 7)
    recommended = {"decoding_strategy": "blocks", "buffer_size": 5}
    assert configure({"model_name": "alpha_pairs"}, host=host, generation_config=recommended) == pairs
    again = resolve("ckpt", pairs.flat(), host=host, checkpoint=CHECKPOINT)
    assert again == pairs
    assert structure(unstructure(config)) == config


def test_whoever_contradicts_the_name_of_the_model_is_told() -> None:
    host = make_host(families=(SETTLED, BETA))
    [hot] = problems_of({"model_name": "alpha_hot", "heat": 0.5}, host=host)
    assert "'alpha_hot' works with 0.75 only; leave heat out, or call the model 'alpha'" in hot
    [blocks] = problems_of({"model_name": "alpha_pairs", "decoding_strategy": "blocks"}, host=host)
    assert "'alpha_pairs' works with 'pairs' only; leave decoding_strategy out" in blocks
    keys = {"decoding_strategy": "pairs", "pair_order": ("left",)}
    host = make_host(families=(attrs.evolve(SETTLED, alias_settings={"alpha_pairs": keys}), BETA))
    assert configure({"model_name": "alpha_pairs"}, host=host).strategy_options == PairsOptions(pair_order=("left",))
    assert problems_of({"model_name": "alpha_pairs", "decoding_strategy": "blocks"}, host=host) == (blocks,)


def test_core_keys_that_a_strategy_does_not_read_are_named_and_ask_for_nothing() -> None:
    given = {"decoding_strategy": "pairs", "block_size": 16, "buffer_size": 8, "max_num_batched_tokens": 64}
    [problem] = problems_of(given, host=make_host(strategies=(PAIRS, BLOCKS)))
    assert "a forward must hold the running blocks of one request" in problem
    host = make_host(strategies=(attrs.evolve(PAIRS, unread={"block_size", "buffer_size"}), BLOCKS))
    config = configure(given, host=host)
    [warning] = config.warnings
    assert "'pairs' does not use block_size, buffer_size; the values given change nothing." in warning
    assert {"block_size", "buffer_size"} < set(config.unused)
    odd = make_host(strategies=(attrs.evolve(PAIRS, unread={"block_sighs"}), BLOCKS))
    with pytest.raises(PluginError, match="'pairs' names block_sighs among the keys that it does not read, but there"):
        configure({"decoding_strategy": "pairs"}, host=odd)


def test_a_strategy_may_have_modes_of_its_own() -> None:
    wild = SamplingMode(thresholds={"remask_threshold"}, ignores={"accept_threshold"}, keys={"pair_order"})
    host = make_host(strategies=(attrs.evolve(PAIRS, modes={"wild": wild}), BLOCKS))
    given = {"decoding_strategy": "pairs", "pair_order": ["left"], "remask_threshold": 0.2, "accept_threshold": 0.3}
    config = configure({**given, "sampling_mode": "wild"}, host=host)
    assert config.decoding.sampling_mode == "wild"
    assert config.strategy.thresholds == {"remask_threshold"}
    [warning] = config.warnings
    assert warning.startswith("The strategy 'pairs' in sampling_mode='wild' does not use accept_threshold;")
    [warning] = configure(given, host=host).warnings
    assert "'naive' does not use accept_threshold, remask_threshold, pair_order;" in warning
    calm = {"wild": wild, "calm": SamplingMode(keys={"pair_order"})}
    both = make_host(strategies=(attrs.evolve(PAIRS, modes=calm), BLOCKS))
    keys = {"decoding_strategy": "pairs", "pair_order": ["left"]}
    assert configure({**keys, "sampling_mode": "calm"}, host=both).warnings == ()
    [problem] = problems_of({**given, "sampling_mode": "wildd"}, host=host)
    assert "'pairs' has no such mode; leave sampling_mode out, give one of naive, wild." in problem
    [problem] = problems_of({"decoding_strategy": "blocks", "sampling_mode": "wild"}, host=host)
    assert "give one of naive, or choose decoding_strategy='pairs'" in problem
    odd = make_host(strategies=(attrs.evolve(PAIRS, modes={"odd": SamplingMode(keys={"pear_order"})}), BLOCKS))
    with pytest.raises(PluginError, match="'pairs' has a mode 'odd' with keys of its own, pear_order, which are no"):
        configure({"decoding_strategy": "pairs"}, host=odd)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"warmth": 1}, "settles warmth for 'alpha_hot', which is no configuration key"), ({"heat": "x"}, "as 'x'")],
)
def test_an_alias_that_settles_what_does_not_exist_is_a_broken_plugin(
    settings: dict[str, object], message: str
) -> None:
    broken = attrs.evolve(SETTLED, alias_settings={"alpha_hot": settings})
    with pytest.raises(PluginError, match=message):
        configure({"model_name": "alpha_hot"}, host=make_host(families=(broken,)))
    with pytest.raises(ValueError, match="settings for alpha_cold, not among the aliases"):
        attrs.evolve(SETTLED, alias_settings={"alpha_cold": settings})


def test_the_model_type_decides_where_no_architecture_is_known() -> None:
    assert configure(checkpoint={**CHECKPOINT, "architectures": ["Unheard"]}).family is ALPHA
    assert configure(checkpoint={**CHECKPOINT, "architectures": None}).family is ALPHA


def test_an_architecture_outranks_the_model_type() -> None:
    assert configure(checkpoint={**CHECKPOINT, "model_type": "beta"}).family is ALPHA


def test_a_checkpoint_that_nobody_claims_lists_families_and_plugins_that_are_not_loaded() -> None:
    @hookimpl
    def diffulex_register_models(register: object) -> None:
        raise OSError("kernel is missing")

    broken = ModuleType("broken_plugin")
    vars(broken)["diffulex_register_models"] = diffulex_register_models
    checkpoint = {**CHECKPOINT, "architectures": ["GammaLM"], "model_type": "gamma"}
    [problem] = problems_of(checkpoint=checkpoint, host=make_host(extra=(broken,)))
    assert "architectures GammaLM; model_type gamma" in problem
    assert "alpha (AlphaLM, SharedLM, alpha)" in problem
    assert "beta (BetaLM, SharedLM, beta)" in problem
    assert "'broken_plugin'" in problem
    assert "OSError: kernel is missing" in problem


def test_a_checkpoint_that_two_families_claim_is_ambiguous_until_one_is_named() -> None:
    shared = {**CHECKPOINT, "architectures": ["SharedLM"]}
    [problem] = problems_of(checkpoint=shared)
    assert "'alpha' (given as a module), 'beta' (given as a module)" in problem
    assert "Give model_name" in problem
    assert configure({"model_name": "alpha"}, checkpoint=shared).family is ALPHA


def test_an_alias_is_replaced_by_the_name() -> None:
    config = configure({"model_name": "alpha_chat", "decoding_strategy": "block_wise"})
    assert (config.model.model_name, config.decoding.decoding_strategy) == ("alpha", "blocks")
    assert config.origins["model_name"].by_user


def test_a_name_overrides_a_checkpoint_that_no_family_claims() -> None:
    checkpoint = {**CHECKPOINT, "architectures": ["GammaLM"], "model_type": "gamma"}
    assert configure({"model_name": "alpha"}, checkpoint=checkpoint).family is ALPHA


def test_a_name_that_contradicts_the_checkpoint_is_refused_naming_both() -> None:
    [problem] = problems_of({"model_name": "beta", "decoding_strategy": "blocks"})
    assert "model_name is 'beta'" in problem
    assert "config.json belongs to 'alpha'" in problem


def test_what_another_familys_checkpoint_lacks_is_not_listed_beside_the_contradiction() -> None:
    checkpoint = {**CHECKPOINT, "architectures": ["BetaLM"], "layers": "missing"}
    [problem] = problems_of({"model_name": "alpha"}, checkpoint=checkpoint)
    assert "config.json belongs to 'beta'" in problem


def test_an_unknown_family_or_strategy_is_refused_with_the_closest_name_beside_other_problems() -> None:
    problems = problems_of({"model_name": "alpa", "decoding_strategy": "block", "page_size": 5})
    assert len(problems) == 3
    assert "Did you mean 'alpha'?" in problems[0]
    assert "Did you mean 'blocks'?" in problems[1]
    assert "page_size" in problems[2]


def test_without_a_checkpoint_a_name_is_needed() -> None:
    [problem] = problems_of(checkpoint=None)
    assert "no config.json" in problem
    assert configure({"model_name": "alpha"}, checkpoint=None).family is ALPHA


def test_the_strategy_is_the_familys_default_unless_named() -> None:
    config = configure()
    assert config.strategy is BLOCKS
    assert config.origins["decoding_strategy"] == Origin(source="family", detail="alpha")
    assert configure({"decoding_strategy": "prefix"}).strategy is PREFIX


def test_a_checkpoint_may_name_its_strategy() -> None:
    config = configure(generation_config={"decoding_strategy": "prefix"})
    assert config.strategy is PREFIX
    assert config.origins["decoding_strategy"].detail == "generation_config.json"


def test_a_family_without_default_strategy_needs_one() -> None:
    [problem] = problems_of(checkpoint={**CHECKPOINT, "architectures": ["BetaLM"]})
    assert "'beta' has no default strategy; give decoding_strategy, one of alpha_own, blocks, pairs." in problem


def test_a_family_and_a_strategy_that_do_not_fit_are_refused_with_what_is_missing() -> None:
    with pytest.raises(IncompatibleError) as caught:
        configure(
            {"decoding_strategy": "prefix", "num_pages": 0}, checkpoint={**CHECKPOINT, "architectures": ["BetaLM"]}
        )
    assert len(caught.value.problems) == 2
    assert Capability.FULL_PREFIX in caught.value.problems[0]
    assert "blocks" in caught.value.problems[0]


def test_a_family_may_refuse_a_config_json() -> None:
    [problem] = problems_of(checkpoint={**CHECKPOINT, "layers": "missing"})
    assert problem == (
        "config.json does not suit the model family 'alpha' (given as a module): layers is missing; add it."
    )


def test_family_and_strategy_bring_their_own_keys() -> None:
    config = configure({"heat": 0.25, "decoding_strategy": "pairs", "pair_order": ["left"]})
    assert config.family_options == AlphaOptions(heat=0.25)
    assert config.strategy_options == PairsOptions(pair_order=("left",))
    assert config.origins["rounds"].source == "default"
    assert configure().strategy_options is None


@pytest.mark.parametrize(
    ("given", "owner"), [({"heat": 2}, "model family 'alpha'"), ({"pair_order": ["up"]}, "strategy 'pairs'")]
)
def test_their_keys_are_checked_and_owned(given: dict[str, object], owner: str) -> None:
    [problem] = problems_of({"decoding_strategy": "pairs", **given})
    assert f"(given by the caller; {owner})" in problem


def test_a_key_of_a_plugin_that_is_not_selected_is_refused_with_its_owner() -> None:
    [problem] = problems_of({"pair_order": ["left"]})
    assert "pair_order (given by the caller) belongs to strategy 'pairs'" in problem


def test_a_family_and_a_strategy_may_share_one_class() -> None:
    config = configure({"decoding_strategy": "alpha_own", "heat": 0.75})
    assert config.family_options is config.strategy_options
    assert config.family_options == AlphaOptions(heat=0.75)


def test_defaults_of_family_and_strategy_are_values_like_any_other() -> None:
    assert configure().decoding.buffer_size == 3
    pairs = configure({"decoding_strategy": "pairs"})
    assert (pairs.decoding.block_size, pairs.decoding.buffer_size) == (8, 2)
    host = make_host(families=(attrs.evolve(ALPHA, defaults={"buffr_size": 3}),))
    [problem] = problems_of(host=host)
    assert "model family 'alpha'" in problem


def test_a_checkpoint_sets_a_plugins_key_where_the_plugin_allows_it() -> None:
    assert configure(generation_config={"sampler": {"heat": 0.1}}).family_options == AlphaOptions(heat=0.1)
    assert configure(generation_config={"heat": 0.2, "sampler": {"heat": 0.1}}).family_options.heat == 0.2
    assert configure(generation_config={"rounds": 9}).family_options.rounds == 3


@pytest.mark.parametrize(
    ("cls", "message"),
    [("ClashingOptions", "'page_size' is declared by core and by"), ("OptionsWithoutDefault", "'heat'.*no default")],
)
def test_a_class_of_keys_that_breaks_the_rules_is_a_plugin_error(cls: str, message: str) -> None:
    host = make_host(families=(attrs.evolve(ALPHA, config_cls=f"tests.core.test_config_names:{cls}"),))
    with pytest.raises(PluginError, match=message):
        configure(host=host)


def test_a_class_that_cannot_be_imported_is_a_plugin_error_but_harmless_while_not_selected() -> None:
    broken = attrs.evolve(PAIRS, config_cls="tests.core.no_such_module:Options")
    host = make_host(strategies=(BLOCKS, ALPHA_OWN, broken))
    assert "oops" in configure({"oops": 1}, host=host).warnings[0]
    with pytest.raises(PluginError, match="no_such_module"):
        configure({"decoding_strategy": "pairs"}, host=host)


def test_a_host_without_families_says_so() -> None:
    with pytest.raises(ConfigError, match="No model family is registered"):
        resolve("ckpt", host=Host.discover([], {}), checkpoint=CHECKPOINT)


def test_the_families_claims_do_not_depend_on_registration_order() -> None:
    assert configure(host=make_host(families=(BETA, ALPHA))) == configure()


def test_a_family_and_a_strategy_may_allow_more_block_and_page_sizes() -> None:
    host = make_host(families=(WIDE,), strategies=(BLOCKS, HALVES))
    config = configure({"block_size": 256, "page_size": 256, "buffer_size": 1}, host=host)
    assert (config.decoding.block_size, config.cache.page_size) == (256, 256)
    config = configure({"block_size": 2, "page_size": 64, "decoding_strategy": "halves"}, host=host)
    assert (config.decoding.block_size, config.cache.page_size) == (2, 64)
    assert structure(unstructure(config)) == config


def test_a_size_that_nobody_allows_is_refused_with_those_that_somebody_does() -> None:
    host = make_host(families=(WIDE,), strategies=(BLOCKS, HALVES))
    [problem] = problems_of({"block_size": 2}, host=host)
    assert "choose one of 4, 8, 16, 32, 64 (model family 'alpha'), 256 (model family 'alpha')" in problem
    [problem] = problems_of({"page_size": 128, "decoding_strategy": "halves"}, host=host)
    assert "32, 2 (strategy 'halves'), 64 (model family 'alpha'), 256 (model family 'alpha')" in problem
    [problem] = problems_of({"page_size": 64})
    assert problem.endswith("choose one of 4, 8, 16, 32.")


@pytest.mark.parametrize("sizes", [(0,), (True,), [64], ("64",)])
def test_sizes_are_whole_numbers(sizes: object) -> None:
    with pytest.raises(ValueError, match=r"sizes=.* whole numbers"):
        attrs.evolve(ALPHA, sizes=sizes)


def test_the_schema_of_a_config_file_allows_the_sizes_of_every_installed_plugin() -> None:
    host = make_host(families=(WIDE, BETA), strategies=(BLOCKS, HALVES))
    properties = json_schema(installed_sections(host), installed_sizes(host))["properties"]
    assert properties["page_size"]["enum"] == properties["block_size"]["enum"] == [4, 8, 16, 32, 2, 64, 256]
    assert properties["cache"]["properties"]["page_size"]["enum"] == [4, 8, 16, 32, 2, 64, 256]
