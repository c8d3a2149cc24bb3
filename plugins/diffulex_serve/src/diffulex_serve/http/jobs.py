"""Answers that are asked for now and fetched later: `/v1/jobs`."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from typing import Any, Literal

import attrs
from fastapi import APIRouter
from starlette.responses import Response

from diffulex_core.plugin import DiffulexError
from diffulex_serve.http.answers import JobState
from diffulex_serve.http.asking import asks_of_job, count_of
from diffulex_serve.http.desk import Desk
from diffulex_serve.http.document import WORK, answers
from diffulex_serve.http.errors import ApiError, as_api_error, json_response
from diffulex_serve.http.native import answer
from diffulex_serve.http.schemas import Job

_log = logging.getLogger(__name__)

Status = Literal["running", "finished", "cancelled", "failed"]


@attrs.define(kw_only=True, eq=False)
class OneJob:
    """A job and what came of it."""

    id: str
    created: float
    status: Status = "running"
    results: list[dict[str, Any]] = attrs.field(factory=list)
    error: dict[str, Any] | None = None
    done_at: float | None = None
    """By the monotonic clock."""
    task: asyncio.Task[None] | None = None
    accepted: bool = False

    def as_json(self, ttl: float) -> dict[str, Any]:
        left = None if self.done_at is None else max(0.0, round(self.done_at + ttl - time.monotonic(), 1))
        return {
            "id": self.id,
            "object": "job",
            "status": self.status,
            "created": int(self.created),
            "expires_in": left,
            "results": self.results if self.status == "finished" else None,
            "error": self.error,
        }


class Jobs:
    """The jobs of one server; a finished one is forgotten when its time is over."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._jobs: dict[str, OneJob] = {}

    async def submit(self, body: Job) -> OneJob:
        """Start a job; returns once the engine took it.

        Raises:
            ApiError, RequestError, EngineUnavailable: it cannot be served, or too many are kept.
        """
        count = count_of(body, self._desk)
        self._expire()
        most = self._desk.options.jobs.max_jobs
        if len(self._jobs) >= most:
            headers = {"Retry-After": "10"}
            raise ApiError(
                429,
                f"{most} jobs are kept already. Delete some.",
                kind="rate_limit_error",
                code="jobs_full",
                headers=headers,
            )
        job = OneJob(id=f"job-{uuid.uuid4().hex}", created=time.time())
        self._jobs[job.id] = job
        taken: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        async def run() -> None:
            try:
                with self._desk.admit(count):
                    async with self._desk.open(await asks_of_job(body, self._desk)) as replies:
                        if not taken.done():
                            taken.set_result(None)
                            job.accepted = True
                        job.results = [answer(reply, await reply.finish(), self._desk.texts) for reply in replies]
                job.status = "finished"
            except asyncio.CancelledError:
                job.status = "cancelled"
            except Exception as error:  # noqa: BLE001 - the boundary of a job, which reports it
                job.status, job.error = "failed", as_api_error(error).body()["error"]
                if not taken.done():
                    taken.set_exception(error)
                elif not isinstance(error, (ApiError, DiffulexError)):
                    _log.exception("job %s failed", job.id)
            finally:
                job.done_at = time.monotonic()
                if job.accepted:
                    _log_end(job)

        job.task = asyncio.create_task(run())
        try:
            await taken
        except BaseException:  # whoever waited left, or it was refused: nobody knows the job
            job.task.cancel()
            self._jobs.pop(job.id, None)
            raise
        return job

    def find(self, job_id: str) -> OneJob:
        """A job by its id.

        Raises:
            ApiError: there is none, or it expired.
        """
        self._expire()
        job = self._jobs.get(job_id)
        if job is None:
            raise ApiError(
                404, f"There is no job {job_id[:100]!r} (any more).", kind="not_found_error", code="job_not_found"
            )
        return job

    async def cancel(self, job_id: str) -> OneJob:
        """End a job that runs, and forget one that is done. Raises what `find` does."""
        job = self.find(job_id)
        if job.status != "running":
            del self._jobs[job_id]
        elif job.task is not None:
            job.task.cancel()
            await asyncio.wait({job.task})
        return job

    async def forget(self, job: OneJob) -> None:
        """End a job, and do as if it had never been."""
        self._jobs.pop(job.id, None)
        if job.task is not None:
            job.task.cancel()
            await asyncio.wait({job.task})

    async def close(self) -> None:
        """Cancel all that runs."""
        tasks = [job.task for job in self._jobs.values() if job.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _expire(self) -> None:
        last = time.monotonic() - self._desk.options.jobs.job_ttl
        for job in list(self._jobs.values()):
            if job.done_at is not None and job.done_at <= last:
                del self._jobs[job.id]


def _log_end(job: OneJob) -> None:
    """Tell what became of a job; the request that started it was answered long ago."""
    seconds = round(time.time() - job.created, 3)
    facts = {"job": job.id, "outcome": job.status, "answers": len(job.results), "seconds": seconds}
    error = f": {job.error['message']}" if job.error else ""
    _log.info("%s %s after %.3f s%s", job.id, job.status, seconds, error, extra={"facts": facts})


def job_routes(desk: Desk, jobs: Jobs) -> APIRouter:
    """The routes."""
    router = APIRouter(tags=["Answers that are fetched later"])
    ttl = desk.options.jobs.job_ttl

    @router.post("/v1/jobs", response_model=None, status_code=202, responses=answers(JobState, *WORK, status=202))
    async def submit(body: Job) -> Response:
        """Start a job: one prompt or several, answered in the background."""
        job = await jobs.submit(body)
        return json_response(job.as_json(ttl), 202, {"Location": f"/v1/jobs/{job.id}"})

    @router.get("/v1/jobs/{job_id}", response_model=None, responses=answers(JobState, 404))
    async def poll(job_id: str) -> Response:
        """How a job stands; its answers once it is finished."""
        return json_response(jobs.find(job_id).as_json(ttl))

    @router.delete("/v1/jobs/{job_id}", response_model=None, responses=answers(JobState, 404))
    async def cancel(job_id: str) -> Response:
        """Cancel a job that runs; forget one that is done."""
        return json_response((await jobs.cancel(job_id)).as_json(ttl))

    return router
