"""Test classes for one thing at a time: override a fixture that makes it, and inherit a test for each check.

class TestMyCache(KVCacheConformance):
    @pytest.fixture
    def kv_cache_factory(self):
        return MyCache
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, NoReturn

import pytest

from diffulex_core.kernels.layers import LayerKernels
from diffulex_core.kernels.moe import ExpertsKernel
from diffulex_core.kv_cache import PagedKVCache
from diffulex_core.plugin import AttentionBackend, AttentionCase, CachePolicy, ModelSource
from diffulex_core.protocols import ModelRunner
from diffulex_core.registry import did_you_mean
from diffulex_core.testing.catalogue import CHECKS
from diffulex_core.testing.check import PREFIX, AnyCheck
from diffulex_core.testing.collect import lenient
from diffulex_core.testing.effort import Effort
from diffulex_core.testing.outcome import BoundCheck
from diffulex_core.testing.subjects import (
    AttentionSubject,
    CachePolicySubject,
    ExecutorSubject,
    ExpertsSubject,
    KVCacheSubject,
    LayerKernelsSubject,
    MakeExecutor,
    MakeKVCache,
    MakeSampler,
    MakeScheduler,
    ModelSourceSubject,
    RunnerSubject,
    SamplerSubject,
    SchedulerSubject,
    Subject,
)

Test = Callable[..., None]
TEST = "test_"
GUARD = "test_no_check_is_replaced"


class Conformance:
    """A test for each check of one type of subject. Subclasses say what is tested, and nothing about how.

    Attributes:
        expected_failures: why a check fails for now, by its name. One that passes all the same is an error.
    """

    expected_failures: ClassVar[Mapping[str, str]] = MappingProxyType({})
    _brought: ClassVar[Mapping[str, Test]] = MappingProxyType({})

    def __init_subclass__(cls, *, subject: type[Any] | None = None, **more: Any) -> None:
        """With `subject`: a base, whose tests are made from the checks of that type. Without: what a base is used for.

        Raises:
            TypeError: a test that the kit brings was replaced, or `expected_failures` names none of them.
        """
        super().__init_subclass__(**more)
        if subject is not None:
            tests = {
                TEST + check.name.removeprefix(PREFIX): _test_of(check)
                for check in CHECKS
                if issubclass(subject, check.subject)
            }
            for name, test in tests.items():
                setattr(cls, name, test)
            cls._brought = MappingProxyType({**tests, GUARD: Conformance.test_no_check_is_replaced})
        cls.refuse_changes()

    @classmethod
    def refuse_changes(cls) -> None:
        """Raise TypeError when a test that the kit brings is gone or replaced, or a declared failure is unknown."""
        members = {name: each for base in reversed(cls.__mro__) for name, each in vars(base).items()}
        if changed := sorted(name for name, test in cls._brought.items() if members.get(name) is not test):
            raise TypeError(
                f"{cls.__name__} replaces or removes {', '.join(changed)}, which the conformance kit brings. A "
                "check that fails for now belongs into expected_failures, with the reason; a test of your own needs "
                "another name."
            )
        if silent := sorted(name for name, reason in cls.expected_failures.items() if not reason.strip()):
            raise TypeError(f"expected_failures of {cls.__name__} gives no reason for {', '.join(silent)}.")
        known = [PREFIX + name.removeprefix(TEST) for name in cls._brought if name != GUARD]
        if unknown := sorted(cls.expected_failures.keys() - set(known)):
            hints = " ".join(did_you_mean(name, known) for name in unknown)
            raise TypeError(
                f"expected_failures of {cls.__name__} names {', '.join(unknown)}, and no such check runs here. {hints}"
            )

    @pytest.fixture
    def effort(self, request: pytest.FixtureRequest) -> Effort:
        """What a check may spend, as `--diffulex-tier` says."""
        return Effort(tier=request.config.getoption("--diffulex-tier"))

    @pytest.fixture
    def subject(self) -> Subject:
        """What the checks are run on."""
        self.says_nothing("subject")

    def says_nothing(self, fixture: str) -> NoReturn:
        """Fail because a fixture was not overridden."""
        pytest.fail(
            f"{type(self).__name__} does not say what is tested: override the fixture `{fixture}`.", pytrace=False
        )

    def test_no_check_is_replaced(self) -> None:
        """Also what was changed after the class was made is refused."""
        self.refuse_changes()


def _test_of(check: AnyCheck) -> Test:
    def test(self: Conformance, subject: Subject, effort: Effort, request: pytest.FixtureRequest) -> None:
        bound = BoundCheck(check=check, subject=subject, effort=effort)
        if (reason := bound.reason_against) is not None:
            pytest.skip(reason)
        expected = self.expected_failures.get(check.name)
        if expected is None:
            lenient(bound)()
        else:
            request.node.add_marker(pytest.mark.xfail(reason=expected, strict=True))
            bound()

    test.__name__ = TEST + check.name.removeprefix(PREFIX)
    test.__qualname__ = test.__name__
    test.__doc__ = check.text
    return test


class KVCacheConformance(Conformance, subject=KVCacheSubject):
    """Checks of a KV cache. Override `kv_cache_factory`."""

    @pytest.fixture
    def kv_cache_factory(self) -> MakeKVCache:
        """What makes a KV cache, as a component of that kind is called."""
        self.says_nothing("kv_cache_factory")

    @pytest.fixture
    def subject(self, kv_cache_factory: MakeKVCache) -> Subject:
        return KVCacheSubject(name=type(self).__name__, factory=kv_cache_factory)


class SchedulerConformance(Conformance, subject=SchedulerSubject):
    """Checks of a scheduler. Override `scheduler_factory`, and `kv_cache_factory` if it needs a cache of its own."""

    @pytest.fixture
    def scheduler_factory(self) -> MakeScheduler:
        """What makes a scheduler, as a component of that kind is called."""
        self.says_nothing("scheduler_factory")

    @pytest.fixture
    def kv_cache_factory(self) -> MakeKVCache:
        """What makes the KV cache that it works with: the engine's own."""
        return PagedKVCache

    @pytest.fixture
    def subject(self, scheduler_factory: MakeScheduler, kv_cache_factory: MakeKVCache) -> Subject:
        return SchedulerSubject(name=type(self).__name__, factory=scheduler_factory, kv_cache=kv_cache_factory)


class SamplerConformance(Conformance, subject=SamplerSubject):
    """Checks of a sampler. Override `sampler_factory`."""

    @pytest.fixture
    def sampler_factory(self) -> MakeSampler:
        """What makes a sampler, as a component of that kind is called."""
        self.says_nothing("sampler_factory")

    @pytest.fixture
    def subject(self, sampler_factory: MakeSampler) -> Subject:
        return SamplerSubject(name=type(self).__name__, factory=sampler_factory)


class CachePolicyConformance(Conformance, subject=CachePolicySubject):
    """Checks of a policy of the sparse cache. Override `cache_policy_factory`."""

    @pytest.fixture
    def cache_policy_factory(self) -> Callable[..., CachePolicy]:
        """What makes a policy, of `geometry` and `tp`."""
        self.says_nothing("cache_policy_factory")

    @pytest.fixture
    def subject(self, cache_policy_factory: Callable[..., CachePolicy]) -> Subject:
        return CachePolicySubject(name=type(self).__name__, factory=cache_policy_factory)


class RunnerConformance(Conformance, subject=RunnerSubject):
    """Checks of a runner. Override `runner_factory`."""

    @pytest.fixture
    def runner_factory(self) -> Callable[..., ModelRunner]:
        """What makes a runner, as a component of that kind is called."""
        self.says_nothing("runner_factory")

    @pytest.fixture
    def subject(self, runner_factory: Callable[..., ModelRunner]) -> Subject:
        return RunnerSubject(name=type(self).__name__, factory=runner_factory)


class ExecutorConformance(Conformance, subject=ExecutorSubject):
    """Checks of an executor. Override `executor_factory`."""

    @pytest.fixture
    def executor_factory(self) -> MakeExecutor:
        """What makes an executor, as a component of that kind is called."""
        self.says_nothing("executor_factory")

    @pytest.fixture
    def subject(self, executor_factory: MakeExecutor) -> Subject:
        return ExecutorSubject(name=type(self).__name__, factory=executor_factory)


class ModelSourceConformance(Conformance, subject=ModelSourceSubject):
    """Checks of a model source. Override `source_factory`, and `known_names` with names that it resolves."""

    @pytest.fixture
    def source_factory(self) -> Callable[[], ModelSource]:
        """What makes a source, such as its class."""
        self.says_nothing("source_factory")

    @pytest.fixture
    def known_names(self) -> Sequence[str]:
        """Names that it resolves without a network: none."""
        return ()

    @pytest.fixture
    def subject(self, source_factory: Callable[[], ModelSource], known_names: Sequence[str]) -> Subject:
        return ModelSourceSubject(name=type(self).__name__, factory=source_factory, known=tuple(known_names))


class ExpertsConformance(Conformance, subject=ExpertsSubject):
    """Checks of a kernel for experts. Override `kernel_factory`."""

    @pytest.fixture
    def kernel_factory(self) -> Callable[[], ExpertsKernel]:
        """What makes a kernel, such as its class."""
        self.says_nothing("kernel_factory")

    @pytest.fixture
    def subject(self, kernel_factory: Callable[[], ExpertsKernel]) -> Subject:
        return ExpertsSubject(name=type(self).__name__, factory=kernel_factory)


class LayerKernelsConformance(Conformance, subject=LayerKernelsSubject):
    """Checks of kernels of the layers. Override `kernels_factory`."""

    @pytest.fixture
    def kernels_factory(self) -> Callable[[], LayerKernels]:
        """What makes them, such as their class."""
        self.says_nothing("kernels_factory")

    @pytest.fixture
    def subject(self, kernels_factory: Callable[[], LayerKernels]) -> Subject:
        return LayerKernelsSubject(name=type(self).__name__, factory=kernels_factory)


class AttentionConformance(Conformance, subject=AttentionSubject):
    """Checks of an attention backend. Override `attention_factory`, and `attention_probe` if some cases are not its."""

    @pytest.fixture
    def attention_factory(self) -> Callable[[], AttentionBackend]:
        """What makes a backend, such as its class."""
        self.says_nothing("attention_factory")

    @pytest.fixture
    def attention_probe(self) -> Callable[[AttentionCase], list[str]]:
        """The reasons it cannot serve a case: none."""
        return _serves_everything

    @pytest.fixture
    def subject(
        self,
        attention_factory: Callable[[], AttentionBackend],
        attention_probe: Callable[[AttentionCase], list[str]],
    ) -> Subject:
        return AttentionSubject(name=type(self).__name__, factory=attention_factory, probe=attention_probe)


def _serves_everything(case: AttentionCase) -> list[str]:
    return []
