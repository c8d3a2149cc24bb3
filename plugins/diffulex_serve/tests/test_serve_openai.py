"""OpenAI's routes: what the usual clients rely on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import pytest
from pydantic import BaseModel

from diffulex_core.engine import Diffulex
from diffulex_core.sampling_params import SamplingParams
from diffulex_serve.http.schemas import ChatCompletion, Completion

Q = "Q: Ann has 12 apples, buys 30 more and gives away 7. How many are left?"
ANSWER = "12 + 30 = 42. 42 - 7 = 35. The answer is 35."
CHAT = {"messages": [{"role": "user", "content": Q}]}


@pytest.fixture(scope="module")
def offline() -> Any:
    with Diffulex("tiny/llada") as engine:
        yield engine


def test_a_completion_is_the_answer_that_the_engine_gives(served: Any, offline: Diffulex) -> None:
    [record] = offline.generate([Q])
    body = served.post("/v1/completions", {"prompt": Q, "model": "tiny/llada"}).json()
    [choice] = body["choices"]
    assert (choice["text"], choice["finish_reason"], choice["stop_detail"]) == (record.text, "stop", "stop_eos")
    assert body["object"] == "text_completion"
    usage = body["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (record.prompt_tokens, len(record.token_ids))
    assert (usage["total_tokens"], usage["nfe"]) == (record.prompt_tokens + len(record.token_ids), record.nfe)


def test_token_ids_are_a_prompt_and_several_prompts_are_answered_in_order(served: Any, offline: Diffulex) -> None:
    other = "Q: Tara has 14 marbles, gets 25 more and sells 27. How many marbles are left?"
    ids = offline.tokenizer.encode(Q)
    assert served.post("/v1/completions", {"prompt": ids}).json()["choices"][0]["text"] == ANSWER
    body = served.post("/v1/completions", {"prompt": [Q, other], "n": 2}).json()
    texts = [choice["text"] for choice in body["choices"]]
    assert texts == [*[ANSWER] * 2, *[offline.generate(other).texts[0]] * 2]
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]


def test_a_chat_without_a_template_takes_one_message_as_the_prompt(served: Any) -> None:
    body = served.post("/v1/chat/completions", CHAT).json()
    [choice] = body["choices"]
    assert choice["message"] == {"role": "assistant", "content": ANSWER, "refusal": None}
    assert body["object"] == "chat.completion"
    parts = [{"type": "text", "text": Q[:10]}, {"type": "text", "text": Q[10:]}]
    again = served.post("/v1/chat/completions", {"messages": [{"role": "user", "content": parts}]}).json()
    assert again["choices"][0]["message"]["content"] == ANSWER


@pytest.mark.parametrize("extra", [{}, {"stop": [" The"]}, {"max_tokens": 6}, {"temperature": 1.0, "seed": 5}])
def test_streamed_pieces_are_the_answer_that_comes_without_a_stream(served: Any, extra: dict[str, Any]) -> None:
    whole = served.post("/v1/chat/completions", {**CHAT, **extra}).json()
    chunks = served.stream("/v1/chat/completions", {**CHAT, **extra, "stream_options": {"include_usage": True}})
    *parts, last, usage = chunks
    assert parts[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    text = "".join(part["choices"][0]["delta"]["content"] for part in parts)
    assert text == whole["choices"][0]["message"]["content"]
    assert last["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert usage["choices"] == []
    for name in ("prompt_tokens", "completion_tokens", "total_tokens", "nfe"):
        assert usage["usage"][name] == whole["usage"][name]
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}


def test_a_stream_without_include_usage_says_nothing_of_usage(served: Any) -> None:
    assert all("usage" not in chunk for chunk in served.stream("/v1/completions", {"prompt": Q}))


def test_an_answer_ends_at_a_stop_string_that_it_does_not_hold(served: Any) -> None:
    [choice] = served.post("/v1/completions", {"prompt": Q, "stop": "42 -"}).json()["choices"]
    assert (choice["text"], choice["stop_detail"]) == ("12 + 30 = 42. ", "stop_string")


def test_a_limit_of_tokens_gives_a_beginning_of_the_answer(served: Any) -> None:
    body = served.post("/v1/chat/completions", {**CHAT, "max_completion_tokens": 5}).json()
    [choice] = body["choices"]
    assert (choice["finish_reason"], choice["stop_detail"]) == ("length", "length_tokens")
    assert body["usage"]["completion_tokens"] == 5
    assert ANSWER.startswith(choice["message"]["content"])


def test_a_seed_gives_the_same_answers_again_and_different_ones_for_each_of_n(served: Any) -> None:
    body = {"prompt": "Q:", "temperature": 8.0, "seed": 3, "n": 3, "max_tokens": 12, "ignore_eos": True}
    first, second = (served.post("/v1/completions", body).json()["choices"] for _ in range(2))
    texts = [choice["text"] for choice in first]
    assert texts == [choice["text"] for choice in second]
    assert len(set(texts)) == 3
    streamed = [""] * 3
    for chunk in served.stream("/v1/completions", body):
        streamed[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    assert streamed == texts


def test_a_prompt_counts_once_however_many_answers_it_gets(served: Any) -> None:
    def counts(body: dict[str, Any]) -> tuple[int, int]:
        asked = {"temperature": 0, "max_tokens": 3, "ignore_eos": True, **body}
        usage = served.post("/v1/completions", asked).json()["usage"]
        return usage["prompt_tokens"], usage["completion_tokens"]

    one, other = counts({"prompt": [5, 6, 7]}), counts({"prompt": [5, 6, 7, 8, 9]})
    assert (one, other) == ((3, 3), (5, 3))
    assert counts({"prompt": [[5, 6, 7], [5, 6, 7, 8, 9]], "n": 3}) == (8, 18)


@pytest.mark.parametrize("body", [ChatCompletion, Completion])
def test_openais_routes_ignore_no_sampling_parameter(body: type[BaseModel]) -> None:
    assert {field.name for field in attrs.fields(SamplingParams)} <= set(body.model_fields)


def test_a_sampling_parameter_that_openai_does_not_know_reaches_the_engine(served: Any) -> None:
    error = served.post("/v1/completions", {"prompt": Q, "remasking": "random"}).json()["error"]
    assert "remasking is a setting of fixed-length generation" in error["message"]


def joined(parts: Sequence[dict[str, Any]]) -> list[Any]:
    return [entry for part in parts if part["logprobs"] for entry in part["logprobs"]["content"]]


def test_log_probabilities_of_chats_are_those_of_the_engine_streamed_and_not(served: Any, offline: Diffulex) -> None:
    [record] = offline.generate([Q], SamplingParams(temperature=0.0, max_tokens=64, logprobs=2))
    assert record.logprobs is not None
    body = {**CHAT, "logprobs": True, "top_logprobs": 2}
    [choice] = served.post("/v1/chat/completions", body).json()["choices"]
    content = choice["logprobs"]["content"]
    assert [entry["logprob"] for entry in content] == [each.logprob for each in record.logprobs if each is not None]
    assert "".join(entry["token"] for entry in content) == ANSWER
    assert [bytes(entry["bytes"]).decode() for entry in content] == [entry["token"] for entry in content]
    assert {len(entry["top_logprobs"]) for entry in content} == {2}
    assert joined([chunk["choices"][0] for chunk in served.stream("/v1/chat/completions", body)]) == content


def test_log_probabilities_of_completions_come_in_columns(served: Any) -> None:
    body = {"prompt": Q, "logprobs": 1}
    [choice] = served.post("/v1/completions", body).json()["choices"]
    told = choice["logprobs"]
    assert "".join(told["tokens"]) == ANSWER
    for offset, token in zip(told["text_offset"], told["tokens"], strict=True):
        assert ANSWER[offset:].startswith(token)
    assert all(len(top) == 1 for top in told["top_logprobs"])
    assert all(value <= 0 for value in told["token_logprobs"])
    streamed = [chunk["choices"][0]["logprobs"] for chunk in served.stream("/v1/completions", body)]
    offsets = [offset for part in streamed if part for offset in part["text_offset"]]
    assert offsets == told["text_offset"]


def test_the_model_is_listed_and_found_by_its_name(served: Any) -> None:
    [model] = served.get("/v1/models").json()["data"]
    assert (model["id"], model["object"], model["owned_by"]) == ("tiny/llada", "model", "diffulex")
    assert served.get("/v1/models/tiny/llada").json() == model
    assert served.get("/v1/models/gpt").status_code == 404


@pytest.mark.parametrize(
    ("body", "status", "param", "code"),
    [
        ({"prompt": Q, "model": "gpt"}, 404, "model", "model_not_found"),
        ({"prompt": "word " * 600}, 400, None, "context_length_exceeded"),
        ({"prompt": ""}, 400, "prompt", None),
        ({}, 400, "prompt", None),
        ({"prompt": Q, "temperature": -1}, 400, "temperature", None),
        ({"prompt": Q, "temperature": "warm"}, 400, "temperature", None),
        ({"prompt": Q, "max_tokens": 0}, 400, "max_tokens", None),
        ({"prompt": Q, "n": 0}, 400, "n", None),
        ({"prompt": Q, "n": 100}, 400, "n", None),
        ({"prompt": [Q] * 20}, 400, "n", None),
        ({"prompt": [100000]}, 400, None, None),
        ({"prompt": Q, "logprobs": 50}, 400, "logprobs", None),
        ({"prompt": Q, "echo": True}, 400, "echo", None),
        ({"prompt": Q, "presence_penalty": 1}, 400, "presence_penalty", None),
        ({"prompt": Q, "logit_bias": {"x": 1}}, 400, "logit_bias.x.[key]", None),
        ({"prompt": Q, "seed": 2**70}, 400, "seed", None),
    ],
)
def test_what_cannot_be_done_is_an_error_object_that_says_why(
    served: Any, body: dict[str, Any], status: int, param: str | None, code: str | None
) -> None:
    response = served.post("/v1/completions", body)
    error = response.json()["error"]
    assert response.status_code == status
    assert (error["param"], error["code"]) == (param, code)
    assert error["message"].endswith(".")
    assert error["type"] == ("not_found_error" if status == 404 else "invalid_request_error")


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"top_logprobs": 1}, "top_logprobs"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}, None),
    ],
)
def test_what_chats_cannot_do_is_refused(served: Any, extra: dict[str, Any], param: str | None) -> None:
    response = served.post("/v1/chat/completions", {**CHAT, **extra})
    assert response.status_code == 400
    if param is not None:
        assert response.json()["error"]["param"] == param


def test_fields_of_openai_without_a_meaning_here_are_ignored(served: Any) -> None:
    body = {**CHAT, "store": False, "metadata": {}, "parallel_tool_calls": True, "tools": [], "user": "me"}
    body["response_format"] = {"type": "text"}
    assert served.post("/v1/chat/completions", body).status_code == 200
