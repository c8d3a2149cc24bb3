"""Jobs under the names that dLLM-Serve gives them: `/v1/generate`, `/v1/generate_batch`, `/v1/result/{id}`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import Field
from starlette.responses import Response

from diffulex_serve.http.answers import Answer, ErrorDetail
from diffulex_serve.http.document import WORK, answers
from diffulex_serve.http.errors import json_response
from diffulex_serve.http.jobs import Jobs, OneJob
from diffulex_serve.http.schemas import Job, Sampling

USUAL_LENGTH = 32
"""Tokens of an answer where a request does not say."""
Prompt = Annotated[str, Field(min_length=1)]


class Submission(Sampling):
    """The body of `/v1/generate`: `gen_length` is what others call `max_tokens`."""

    prompt: Prompt


class Submissions(Sampling):
    """The body of `/v1/generate_batch`."""

    prompts: Annotated[list[Prompt], Field(min_length=1)]


class Submitted(Answer):
    """The ids under which the answers will be found, one for each prompt."""

    request_ids: list[str]
    status: Literal["submitted"]


class Result(Answer):
    """How a request stands, and its answer once it is finished."""

    request_id: str
    status: Literal["running", "finished", "cancelled", "failed"]
    text: str | None
    error: ErrorDetail | None


def polling_routes(jobs: Jobs) -> APIRouter:
    """The routes."""
    router = APIRouter(tags=["Answers that are fetched later, as in dLLM-Serve"])

    @router.post("/v1/generate", response_model=None, responses=answers(Submitted, *WORK))
    async def submit(body: Submission) -> Response:
        """Start a request. Where nothing is said it is greedy, and 32 tokens long."""
        return json_response(await _submit(jobs, body, [body.prompt]))

    @router.post("/v1/generate_batch", response_model=None, responses=answers(Submitted, *WORK))
    async def submit_batch(body: Submissions) -> Response:
        """Start a request for each prompt; all of them, or none."""
        return json_response(await _submit(jobs, body, body.prompts))

    @router.get("/v1/result/{request_id}", response_model=None, responses=answers(Result, 404))
    async def result(request_id: str) -> Response:
        """How a request stands; a finished one is kept for `job_ttl` seconds."""
        return json_response(_result(jobs.find(request_id)))

    @router.delete("/v1/result/{request_id}", response_model=None, responses=answers(Result, 404))
    async def cancel(request_id: str) -> Response:
        """Cancel a request that runs; forget one that is done."""
        return json_response(_result(await jobs.cancel(request_id)))

    return router


async def _submit(jobs: Jobs, body: Sampling, prompts: Sequence[str]) -> dict[str, Any]:
    given = body.model_dump(exclude_unset=True, exclude={"prompt", "prompts", "gen_length"})
    settings = {"temperature": 0.0, "max_tokens": body.gen_length or USUAL_LENGTH, **given}
    started: list[OneJob] = []
    try:
        for prompt in prompts:
            job = await jobs.submit(Job(prompt=prompt, **settings))
            started.append(job)
    except BaseException:  # nobody knows those that were started
        for job in started:
            await jobs.forget(job)
        raise
    return {"request_ids": [job.id for job in started], "status": "submitted"}


def _result(job: OneJob) -> dict[str, Any]:
    text = job.results[0]["text"] if job.status == "finished" else None
    return {"request_id": job.id, "status": job.status, "text": text, "error": job.error}
