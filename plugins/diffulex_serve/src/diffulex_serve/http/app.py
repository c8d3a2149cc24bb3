"""The application: all routes over one engine client."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from diffulex_serve.http.desk import Desk
from diffulex_serve.http.errors import add_handlers
from diffulex_serve.http.health import health_routes
from diffulex_serve.http.jobs import Jobs, job_routes
from diffulex_serve.http.middleware import OPEN_ROUTES, ApiKey, BodyLimit, RequestLog
from diffulex_serve.http.native import native_routes
from diffulex_serve.http.openai import openai_routes
from diffulex_serve.page.routes import PAGE_PATHS, page_routes


def create_app(desk: Desk) -> FastAPI:
    """The application of a desk. Whoever made the desk's client starts and closes it."""
    options = desk.options
    jobs = Jobs(desk)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await jobs.close()

    # Outermost first. The key comes before the body, so that strangers cannot send any.
    middleware = [Middleware(RequestLog, metrics=desk.metrics)]
    if options.security.cors_origins:
        middleware.append(
            Middleware(
                CORSMiddleware,
                allow_origins=list(options.security.cors_origins),
                allow_methods=["GET", "POST", "DELETE"],
                allow_headers=["Authorization", "Content-Type", "X-Request-Id"],
            )
        )
    if options.security.api_key is not None:
        middleware.append(Middleware(ApiKey, key=options.security.api_key, open_routes=OPEN_ROUTES | PAGE_PATHS))
    limits = options.limits
    middleware.append(Middleware(BodyLimit, most=limits.max_body_bytes, seconds=limits.body_timeout))
    # The pages about the API would load scripts from elsewhere; the document itself is served.
    app = FastAPI(title="diffulex", docs_url=None, redoc_url=None, lifespan=lifespan, middleware=middleware)
    add_handlers(app)
    routers = (openai_routes(desk), native_routes(desk), job_routes(desk, jobs), health_routes(desk), page_routes())
    for router in routers:
        app.include_router(router)
    return app
