"""How the server is: for probes, dashboards and people."""

from __future__ import annotations

import time
from importlib.metadata import version

from fastapi import APIRouter
from starlette.responses import Response

from diffulex_serve.engine.client import EngineState
from diffulex_serve.http.desk import Desk
from diffulex_serve.http.errors import json_response


def health_routes(desk: Desk) -> APIRouter:
    """The routes."""
    router = APIRouter()

    @router.get("/health", response_model=None)
    async def health() -> Response:
        """The server's process is up; says nothing of the engine."""
        return json_response({"status": "ok"})

    @router.get("/ready", response_model=None)
    async def ready() -> Response:
        """Whether requests are taken: 200, or 503 and why not."""
        state, load = desk.client.state, desk.client.load
        good = state is EngineState.READY and not desk.draining
        age = None if desk.stepped_at is None else round(time.monotonic() - desk.stepped_at, 3)
        return json_response(
            {
                "ready": good,
                "engine": state.value,
                "draining": desk.draining,
                "requests": desk.inside,
                "last_step_age_s": age,
                "kv_pages": {"total": load.pages, "free": load.free_pages},
            },
            200 if good else 503,
        )

    @router.get("/version", response_model=None)
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
            }
        )

    @router.get("/metrics", response_model=None)
    async def metrics() -> Response:
        """Counters for Prometheus."""
        desk.metrics.up.set(desk.client.state is EngineState.READY)
        return Response(desk.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return router
