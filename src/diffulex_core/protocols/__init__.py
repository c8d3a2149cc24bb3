"""The seams of the engine. Implementations are chosen by name when the configuration is resolved.

Importing this package imports no torch; tensor types are named in annotations only.
"""

from diffulex_core.protocols.checkpoints import ModelSource, WeightResolver
from diffulex_core.protocols.networks import (
    AttentionBackend,
    CachePolicy,
    DiffusionModel,
    SelfConditioned,
    SoftInputNetwork,
)
from diffulex_core.protocols.requests import Foreseeing, GuidedReq, JointReq, Req, ReqFactory, ReqKind
from diffulex_core.protocols.running import Executor, LeisurelyRunner, ModelRunner, ProfiledExecutor, StagedRunner
from diffulex_core.protocols.sampling import BelievingSampler, PartwiseSampler, Sampler
from diffulex_core.protocols.scheduling import KVCacheManager, Scheduler

__all__ = [
    "AttentionBackend",
    "BelievingSampler",
    "CachePolicy",
    "DiffusionModel",
    "Executor",
    "Foreseeing",
    "GuidedReq",
    "JointReq",
    "KVCacheManager",
    "LeisurelyRunner",
    "ModelRunner",
    "ModelSource",
    "PartwiseSampler",
    "ProfiledExecutor",
    "Req",
    "ReqFactory",
    "ReqKind",
    "Sampler",
    "Scheduler",
    "SelfConditioned",
    "SoftInputNetwork",
    "StagedRunner",
    "WeightResolver",
]
