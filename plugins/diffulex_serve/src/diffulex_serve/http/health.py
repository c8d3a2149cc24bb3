"""How the server is: for probes, dashboards and people."""

from __future__ import annotations

import time
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from diffulex_serve.engine.status import EngineState, ReplicaStatus
from diffulex_serve.http.answers import Config, Done, Readiness, Version
from diffulex_serve.http.desk import Desk
from diffulex_serve.http.document import ENGINE, answers
from diffulex_serve.http.errors import json_response
from diffulex_serve.http.schemas import sampling_values
from diffulex_serve.settings import explain_options


def health_routes(desk: Desk) -> APIRouter:
    """The routes."""
    router = APIRouter(tags=["Operation"])

    @router.get("/health", response_model=None, responses=answers(Done))
    @router.get("/v1/health", response_model=None, responses=answers(Done))
    async def health() -> Response:
        """The server's process is up; says nothing of the engine."""
        return json_response({"status": "ok"})

    @router.get("/ready", response_model=None, responses=answers(Readiness, also=(503,)))
    async def ready() -> Response:
        """Whether requests are taken: 200, or 503 and why not."""
        state, load = desk.client.state, desk.client.load
        good = state is EngineState.READY and not desk.draining
        return json_response(
            {
                "ready": good,
                "engine": state.value,
                "draining": desk.draining,
                "requests": desk.inside,
                "last_step_age_s": _since(desk.stepped_at),
                "kv_pages": {"total": load.pages, "free": load.free_pages},
                "replicas": [_replica(index, status) for index, status in enumerate(desk.client.replicas)],
            },
            200 if good else 503,
        )

    @router.get("/version", response_model=None, responses=answers(Version, *ENGINE))
    async def versions() -> Response:
        """What runs here."""
        info = desk.info
        return json_response(
            {
                "version": version("diffulex-serve"),
                "core": version("diffulex-core"),
                "model": desk.model,
                "family": info.family,
                "strategy": info.strategy,
                "block_size": info.block_size,
                "max_model_len": info.max_model_len,
                "chat_template": desk.texts.has_template,
                "sampling_defaults": sampling_values(info.sampling_defaults),
            }
        )

    @router.get("/v1/config", response_model=None, responses=answers(Config, *ENGINE))
    async def config() -> Response:
        """Every key of the engine and of the server: its value and who set it. Secrets are not told."""
        return json_response({**desk.info.config, "serve": explain_options(desk.options)})

    @router.get("/metrics", response_model=None, responses=answers(None))
    async def metrics() -> Response:
        """Counters for Prometheus."""
        desk.metrics.up.set(desk.client.state is EngineState.READY)
        return Response(desk.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return router


def _replica(index: int, status: ReplicaStatus) -> dict[str, Any]:
    load = status.load
    loading = status.state in (EngineState.LOADING, EngineState.RESTARTING)
    return {
        "replica": index,
        "state": status.state.value,
        "running": status.running,
        "waiting": status.waiting,
        "last_step_age_s": _since(status.stepped_at),
        "kv_pages": {"total": load.pages, "free": load.free_pages},
        "deaths": sum(status.deaths.values()),
        "restarts": status.restarts,
        "last_error": status.last_error,
        "loading": {"seconds": _since(status.began), "doing": status.doing} if loading else None,
    }


def _since(moment: float | None) -> float | None:
    return None if moment is None else round(time.monotonic() - moment, 3)
