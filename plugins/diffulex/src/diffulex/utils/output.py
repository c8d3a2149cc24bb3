"""Answers, their trajectories and their metrics."""

from diffulex_core.outputs import BlockTrace, GenerationOutputs, ReqStep, ReqTrajectory

__all__ = ["BlockTrace", "GenerationOutputs", "ReqStep", "ReqTrajectory"]
