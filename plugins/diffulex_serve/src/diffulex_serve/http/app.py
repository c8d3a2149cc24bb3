"""The application: all routes over one engine client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from diffulex_serve.http.desk import Desk
from diffulex_serve.http.document import Application
from diffulex_serve.http.errors import add_handlers
from diffulex_serve.http.health import health_routes
from diffulex_serve.http.hosts import HostCheck, expected_hosts
from diffulex_serve.http.jobs import Jobs, job_routes
from diffulex_serve.http.middleware import OPEN_ROUTES, ApiKey, BodyLimit, Heads, RequestLog
from diffulex_serve.http.native import native_routes
from diffulex_serve.http.openai import openai_routes
from diffulex_serve.http.polling import polling_routes
from diffulex_serve.http.reference import reference_routes
from diffulex_serve.page.routes import PAGE_PATHS, page_routes


def create_app(desk: Desk) -> FastAPI:
    """The application of a desk. Whoever made the desk's client starts and closes it."""
    options = desk.options
    jobs = Jobs(desk)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # Made once, and not while others wait for their answers.
        await asyncio.to_thread(app.openapi)
        yield
        await jobs.close()

    # Outermost first. The key comes before the body, so that strangers cannot send any.
    middleware = [Middleware(RequestLog, metrics=desk.metrics)]
    hosts = expected_hosts(options)
    if hosts is not None:
        middleware.append(Middleware(HostCheck, allowed=hosts))
    if options.security.cors_origins:
        middleware.append(
            Middleware(
                CORSMiddleware,
                allow_origins=list(options.security.cors_origins),
                allow_methods=["GET", "POST", "DELETE"],
                allow_headers=["Authorization", "Content-Type", "X-Request-Id"],
                expose_headers=["X-Request-Id", "Retry-After", "Location"],
            )
        )
    if options.security.api_key is not None:
        middleware.append(Middleware(ApiKey, key=options.security.api_key, open_routes=OPEN_ROUTES | PAGE_PATHS))
    limits = options.limits
    middleware.append(Middleware(BodyLimit, most=limits.max_body_bytes, seconds=limits.body_timeout))
    middleware.append(Middleware(Heads))
    # The usual pages about the API would load scripts from elsewhere; /docs is a page of our own.
    app = Application(
        secured=options.security.api_key is not None,
        title="diffulex",
        description="Answers of a diffusion language model, and how they come to be.",
        version=version("diffulex-serve"),
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        middleware=middleware,
    )
    add_handlers(app)
    for router in (
        openai_routes(desk),
        native_routes(desk),
        job_routes(desk, jobs),
        polling_routes(jobs),
        health_routes(desk),
        reference_routes(),
        page_routes(),
    ):
        app.include_router(router)
    return app
