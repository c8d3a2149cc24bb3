"""Stand-ins for the parts around whatever is under test: networks without weights, which notice what real ones hide."""

from diffulex_core.testing.fakes.hash_runner import HashRunner
from diffulex_core.testing.fakes.network import EOS, LAYERS, MASK, WORDS
from diffulex_core.testing.fakes.scripted import ScriptedRunner, all_at_once, one_at_a_time

__all__ = ["EOS", "LAYERS", "MASK", "WORDS", "HashRunner", "ScriptedRunner", "all_at_once", "one_at_a_time"]
