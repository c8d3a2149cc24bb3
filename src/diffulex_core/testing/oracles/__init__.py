"""What is right, said slowly: oracles that share no helper with the code under test."""

from diffulex_core.testing.oracles.alone import Answer, answer_alone
from diffulex_core.testing.oracles.attention import dense
from diffulex_core.testing.oracles.sampler import Distribution, accepted, distribution

__all__ = ["Answer", "Distribution", "accepted", "answer_alone", "dense", "distribution"]
