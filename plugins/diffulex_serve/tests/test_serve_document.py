"""The OpenAPI document tells the truth: every route, every answer, every event, every error."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Any, Union

import pytest
from pydantic import BaseModel, TypeAdapter

from diffulex_serve.http.answers import (
    Aborted,
    ChatAnswer,
    Config,
    Done,
    ErrorBody,
    Generated,
    JobState,
    Model,
    Models,
    Readiness,
    Text,
    TextAnswer,
    Tokens,
    Version,
)
from diffulex_serve.http.document import ALWAYS, ERRORS
from diffulex_serve.http.frames import streamed
from diffulex_serve.http.polling import Result, Submitted
from diffulex_serve.http.reference import page
from diffulex_serve.options import JobsSection, LimitsSection, SecuritySection, ServeOptions

Q = "Q: Ann has 12 apples, buys 30 more and gives away 7. How many are left?"
CHAT = [{"role": "user", "content": Q}]


@pytest.fixture(scope="module")
def document(served: Any) -> dict[str, Any]:
    server = served.with_options(ServeOptions(security=SecuritySection(enable_profiling=True)))
    told: dict[str, Any] = server.get("/openapi.json").json()
    return told


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"{method} {path}", operation


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for name, inner in value.items():
            if name == "$ref":
                yield inner
            else:
                yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def test_every_route_says_what_it_is_for_and_what_it_answers(document: dict[str, Any]) -> None:
    error = {"$ref": "#/components/schemas/ErrorBody"}
    for name, operation in operations(document):
        assert operation["description"].endswith((".", "!")), name
        assert operation["tags"], name
        responses = operation["responses"]
        assert "422" not in responses, name
        assert {str(status) for status in ALWAYS} <= responses.keys(), name
        good = [response for status, response in responses.items() if status.startswith("2")]
        assert len(good) == 1, name
        if not name.endswith("/metrics"):
            assert "$ref" in good[0]["content"]["application/json"]["schema"], name
        for status, response in responses.items():
            if not status.startswith("2") and (name, status) != ("get /ready", "503"):
                assert response["content"]["application/json"]["schema"] == error, name
                assert response["description"] == ERRORS[int(status)]


def test_no_reference_of_the_document_leads_nowhere(document: dict[str, Any]) -> None:
    found = set(references(document))
    assert len(found) > 60
    assert {each.removeprefix("#/components/schemas/") for each in found} <= document["components"]["schemas"].keys()


def test_the_streams_are_described_with_all_of_their_events(document: dict[str, Any]) -> None:
    streams = {
        name: operation["responses"]["200"]["content"]["text/event-stream"]["schema"]["$ref"].rpartition("/")[2]
        for name, operation in operations(document)
        if "text/event-stream" in str(operation["responses"])
    }
    assert streams == {
        "post /generate": "GenerateEvent",
        "post /v1/chat/completions": "ChatEvent",
        "post /v1/completions": "TextEvent",
    }
    events = document["components"]["schemas"]["GenerateEvent"]["anyOf"]
    assert len(events) == 14
    fill = document["components"]["schemas"]["FillEvent"]
    assert fill["properties"]["event"]["const"] == "fill"
    assert {"v", "id", "seq", "step", "nfe", "block", "pos", "token_ids", "text"} <= set(fill["required"])
    assert "confidence" not in fill["required"]


def test_a_server_with_a_key_says_so(served: Any, document: dict[str, Any]) -> None:
    assert "security" not in document
    server = served.with_options(ServeOptions(security=SecuritySection(api_key="k")))
    told = server.get("/openapi.json", headers={"Authorization": "Bearer k"}).json()
    assert told["components"]["securitySchemes"] == {"key": {"type": "http", "scheme": "bearer"}}
    assert told["security"] == [{"key": []}]
    assert told["paths"]["/health"]["get"]["security"] == []


ANSWERS: list[tuple[str, str, Any, type[BaseModel]]] = [
    ("POST", "/generate", {"prompt": Q}, Generated),
    ("POST", "/generate", {"prompt": Q, "logprobs": 1}, Generated),
    ("POST", "/v1/completions", {"prompt": [Q, "Q"], "max_tokens": 4, "n": 2}, TextAnswer),
    ("POST", "/v1/completions", {"prompt": Q, "logprobs": 2}, TextAnswer),
    ("POST", "/v1/chat/completions", {"messages": CHAT}, ChatAnswer),
    ("POST", "/v1/chat/completions", {"messages": CHAT, "logprobs": True, "top_logprobs": 2}, ChatAnswer),
    ("POST", "/tokenize", {"prompt": Q}, Tokens),
    ("POST", "/detokenize", {"tokens": [3, 4]}, Text),
    ("DELETE", "/v1/requests/none", None, Aborted),
    ("GET", "/v1/models", None, Models),
    ("GET", "/v1/models/tiny/llada", None, Model),
    ("GET", "/health", None, Done),
    ("GET", "/v1/health", None, Done),
    ("GET", "/ready", None, Readiness),
    ("GET", "/version", None, Version),
    ("GET", "/v1/config", None, Config),
]


@pytest.mark.parametrize(("method", "path", "body", "model"), ANSWERS)
def test_an_answer_is_what_the_document_says(
    served: Any, document: dict[str, Any], method: str, path: str, body: Any, model: type[BaseModel]
) -> None:
    response = served.ask(method, path, json=body)
    assert response.status_code == 200, response.text
    model.model_validate(response.json())
    described = "/v1/models/{name}" if path.startswith("/v1/models/") else path.replace("/none", "/{request_id}")
    good = document["paths"][described][method.lower()]["responses"]["200"]["content"]["application/json"]["schema"]
    assert good == {"$ref": f"#/components/schemas/{model.__name__}"}


@pytest.mark.parametrize(
    ("path", "body", "events"),
    [
        ("/generate", {"prompt": Q, "stream_mode": "events", "snapshot_every": 1}, "GenerateEvent"),
        ("/generate", {"prompt": Q, "stream_mode": "denoise"}, "GenerateEvent"),
        ("/generate", {"prompt": Q, "stream_mode": "block_append"}, "GenerateEvent"),
        ("/v1/completions", {"prompt": Q, "logprobs": 1}, "TextEvent"),
        (
            "/v1/chat/completions",
            {"messages": CHAT, "logprobs": True, "stream_options": {"include_usage": True}},
            "ChatEvent",
        ),
    ],
)
def test_every_event_is_what_the_document_says(served: Any, path: str, body: dict[str, Any], events: str) -> None:
    described: TypeAdapter[Any] = TypeAdapter(Union[streamed()[events]])  # noqa: UP007 - of classes known only here
    told = served.stream(path, body)
    assert len(told) > 1
    for event in told:
        described.validate_python(event)


def test_jobs_are_what_the_document_says(served: Any) -> None:
    response = served.post("/v1/jobs", {"prompt": Q})
    assert response.status_code == 202
    job = response.json()
    JobState.model_validate(job)
    deadline = time.monotonic() + 20
    while job["status"] == "running" and time.monotonic() < deadline:
        time.sleep(0.02)
        job = served.get(f"/v1/jobs/{job['id']}").json()
    assert JobState.model_validate(job).results is not None
    submitted = served.post("/v1/generate", {"prompt": Q}).json()
    [request_id] = Submitted.model_validate(submitted).request_ids
    Result.model_validate(served.get(f"/v1/result/{request_id}").json())


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/generate", {}, 400),
        ("POST", "/v1/completions", {"prompt": 3}, 400),
        ("POST", "/v1/completions", {"prompt": "Q", "model": "gpt"}, 404),
        ("GET", "/v1/jobs/none", None, 404),
        ("GET", "/v1/result/none", None, 404),
        ("GET", "/nothing", None, 404),
        ("GET", "/generate", None, 405),
        ("POST", "/generate", {"prompt": "Q" * 3000}, 413),
        ("POST", "/v1/jobs", {"prompt": "Q"}, 429),
    ],
)
def test_an_error_is_what_the_document_says(
    served: Any, method: str, path: str, body: Any, status: int, document: dict[str, Any]
) -> None:
    limits, jobs = LimitsSection(max_body_bytes=2000), JobsSection(max_jobs=1)
    server = served.with_options(ServeOptions(limits=limits, jobs=jobs))
    if status == 429:
        assert server.post("/v1/jobs", {"prompt": "Q"}).status_code == 202
    response = server.ask(method, path, json=body)
    assert response.status_code == status, response.text
    ErrorBody.model_validate(response.json())
    assert response.headers["x-request-id"]


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        ("/v1/jobs/x", "DELETE, GET, HEAD"),
        ("/v1/jobs", "POST"),
        ("/v1/models/a/b", "GET, HEAD"),
        ("/page/app.js", "GET, HEAD"),
    ],
)
def test_all_methods_of_a_path_are_told_to_who_tries_another(served: Any, path: str, methods: str) -> None:
    response = served.ask("PATCH", path)
    assert (response.status_code, response.headers["allow"]) == (405, methods)


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/v1/generate", {"prompt": ""}, "prompt"),
        ("/v1/generate_batch", {"prompts": ["Q", ""]}, "prompts.1"),
        ("/v1/completions", {"prompt": "Q", "max_tokens": 0}, "max_tokens"),
        ("/v1/chat/completions", {"messages": CHAT, "top_p": 0}, "top_p"),
        ("/generate", {"prompt": "Q", "logit_bias": {"a": 1}}, "logit_bias.a.[key]"),
        ("/generate", {"prompt": "Q", "logprobs": 21}, "logprobs"),
        ("/detokenize", {"tokens": [1], "skip_special_tokens": "no"}, "skip_special_tokens"),
    ],
)
def test_what_is_out_of_bounds_is_refused_by_its_name(served: Any, path: str, body: Any, field: str) -> None:
    response = served.post(path, body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, field)


@pytest.mark.parametrize(
    ("path", "body", "field", "why"),
    [
        ("/v1/completions", {"prompt": [True]}, "prompt.0", "valid integer"),
        ("/v1/completions", {"prompt": [-1]}, "prompt.0", "greater than or equal to 0"),
        ("/v1/completions", {"prompt": [[]]}, "prompt.0", "at least 1 item"),
        ("/v1/completions", {"prompt": 5}, "prompt", "valid string"),
        ("/generate", {"prompt": "Q", "stop": ["a"] * 33}, "stop", "at most 32 items"),
        ("/generate", {"prompt": "Q", "stop": ["a", "b" * 257]}, "stop.1", "at most 256 characters"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{"type": "image"}]}]}, None, "'text'"),
        ("/v1/chat/completions", {"messages": [{}]}, "messages.0.role", "required"),
        ("/tokenize", {"prompt": 5, "nothing": 6}, "prompt", "(1 more problems)"),
    ],
)
def test_what_may_be_of_several_kinds_is_refused_for_what_is_wrong_with_it(
    served: Any, path: str, body: Any, field: str | None, why: str
) -> None:
    error = served.post(path, body).json()["error"]
    assert error["param"] == (field or "messages.0.content.0.type")
    assert why in error["message"]


@pytest.mark.parametrize("path", ["/health", "/ready", "/", "/page/app.js", "/openapi.json", "/v1/models/tiny/llada"])
def test_who_asks_for_heads_gets_those_of_get_without_a_body(served: Any, path: str) -> None:
    head, whole = served.ask("HEAD", path), served.get(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == whole.headers["content-type"]


def test_the_document_is_a_page_for_people_too(served: Any, document: dict[str, Any]) -> None:
    response = served.get("/docs")
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in response.headers["content-security-policy"]
    text = response.text
    for name, _ in operations(served.get("/openapi.json").json()):
        method, _, path = name.partition(" ")
        assert f"<code>{method.upper()} {path}</code>" in text
    for name in document["components"]["schemas"]:
        assert f'id="{name}"' in text or name in ("Profile", "Recorded")
    assert set(re.findall(r'href="#([^"]+)"', text)) <= set(re.findall(r'id="([^"]+)"', text))
    assert "src=" not in text


def test_what_a_document_says_is_text_on_the_page() -> None:
    told = {
        "info": {"title": "<t>", "version": "1", "description": "`a` <b>"},
        "paths": {},
        "components": {"schemas": {"X": {"description": "<script>", "type": "string"}}},
    }
    text = page(told)
    assert "<h1>&lt;t&gt; 1</h1><p><code>a</code> &lt;b&gt;</p>" in text
    assert "<script>" not in text
