"""The server's own routes: streams of the canvas, jobs, texts and tokens, probes."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any, get_args

import attrs
import pytest
from hypothesis import given, settings, strategies as st

from diffulex_core.sampling_params import SamplingParams
from diffulex_serve.http.schemas import Generate, Job, OpenAISampling, Sampling
from diffulex_serve.options import JobsSection, SecuritySection, ServeOptions
from diffulex_serve.settings import read_options
from diffulex_serve.stream.protocol import Body

Q = "Q: Ann has 12 apples, buys 30 more and gives away 7. How many are left?"
ANSWER = "12 + 30 = 42. 42 - 7 = 35. The answer is 35."


def test_every_sampling_parameter_may_be_given() -> None:
    assert set(Sampling.model_fields) == {field.name for field in attrs.fields(SamplingParams)}
    assert issubclass(Generate, Sampling)
    assert issubclass(Job, Sampling)
    # OpenAI's routes have log probabilities of their own.
    assert set(Sampling.model_fields) - {"logprobs"} <= set(OpenAISampling.model_fields)


def test_an_answer_tells_text_tokens_and_what_it_cost(served: Any) -> None:
    body = served.post("/generate", {"prompt": Q}).json()
    assert (body["text"], body["finish_reason"], body["stop_detail"]) == (ANSWER, "stop", "stop_eos")
    assert served.post("/detokenize", {"tokens": body["token_ids"]}).json() == {"prompt": ANSWER}
    assert body["engine_decode_tokens"] == len(body["token_ids"]) == body["usage"]["completion_tokens"]
    assert 0 < body["engine_decode_time_s"] < 60
    messages = [{"role": "user", "content": Q}]
    assert served.post("/generate", {"messages": messages}).json()["text"] == ANSWER


def test_events_tell_the_whole_story_of_an_answer(served: Any) -> None:
    events = served.stream("/generate", {"prompt": Q, "stream_mode": "events", "snapshot_every": 1})
    assert [event["seq"] for event in events] == list(range(len(events)))
    assert [events[0]["event"], events[-1]["event"]] == ["start", "end"]
    assert {event["event"] for event in events} <= {each.event for each in get_args(Body)}
    assert (events[0]["strategy"], events[0]["prompt_tokens"]) == ("d2f", 20)
    commits = [event for event in events if event["event"] == "block_commit"]
    assert "".join(commit["text"] for commit in commits) == events[-1]["text"] == ANSWER
    assert [token for commit in commits for token in commit["token_ids"]] == events[-1]["token_ids"]
    shown: dict[int, int] = {}
    for event in events:
        if event["event"] == "fill":
            assert not shown.keys() & set(event["pos"])
            assert all(0 < value <= 1 for value in event["confidence"])
            shown.update(zip(event["pos"], event["token_ids"], strict=True))
    assert [shown[at] for at in range(len(events[-1]["token_ids"]))] == events[-1]["token_ids"]
    last = [event for event in events if event["event"] == "snapshot"][-1]
    assert last["token_ids"][: len(events[-1]["token_ids"])] == events[-1]["token_ids"]


@pytest.mark.parametrize(
    ("detail", "missing"),
    [("none", {"block_open", "fill"}), ("blocks", {"fill"}), ("tokens", set()), ("tokens+confidence", set())],
)
def test_a_client_says_how_much_it_wants_to_know(served: Any, detail: str, missing: set[str]) -> None:
    events = served.stream("/generate", {"prompt": Q, "stream_mode": "events", "detail": detail})
    kinds = {event["event"] for event in events}
    assert kinds == {"start", "block_open", "fill", "block_commit", "end"} - missing
    told = any("confidence" in event for event in events)
    assert told == (detail == "tokens+confidence")


def test_a_client_that_wants_few_looks_gets_steps_joined(served: Any) -> None:
    body = {"prompt": Q, "stream_mode": "events", "min_interval_ms": 400, "detail": "tokens"}
    events = served.stream("/generate", body)
    commits = [event for event in events if event["event"] == "block_commit"]
    assert "".join(commit["text"] for commit in commits) == ANSWER
    assert len({event["step"] for event in events}) < 5


def test_the_end_of_an_answer_waits_for_no_look(served: Any) -> None:
    began = time.monotonic()
    *_, last = served.stream("/generate", {"prompt": Q, "stream_mode": "events", "min_interval_ms": 60_000})
    assert (last["event"], last["text"]) == ("end", ANSWER)
    assert time.monotonic() - began < 30


def test_snapshots_draw_the_answer_and_hold_only_what_may_have_changed(served: Any) -> None:
    body = {"prompt": Q, "thresholds": {"accept_threshold": 0.9999}}
    answer = served.post("/generate", body).json()
    *snapshots, final = served.stream("/generate", {**body, "mask_symbol": "#"})
    assert {event["event"] for event in snapshots} == {"buffer_snapshot"}
    assert (final["event"], final["text"], final["finished"]) == ("final", answer["text"], True)
    draft: list[int | None] = []
    for event in snapshots:
        at = event["token_offset"]
        assert at <= len(draft)
        assert (event["absolute_start"], event["absolute_end"]) == (20 + at, 20 + at + len(event["token_ids"]))
        draft[at:] = event["token_ids"]
        assert event["text"].count("#") == event["token_ids"].count(None)
    assert len(snapshots) < 3 or any(None in event["token_ids"] for event in snapshots)
    assert draft[: len(final["token_ids"])] == final["token_ids"] == answer["token_ids"]
    assert 1 <= len(snapshots) <= answer["nfe"]  # fewer where the engine was faster than this reader


def test_appended_texts_are_the_answer(served: Any) -> None:
    *parts, final = served.stream("/generate", {"prompt": Q, "stream_mode": "block_append", "stop": [" The"]})
    assert "".join(part["text"] for part in parts) == final["text"] == "12 + 30 = 42. 42 - 7 = 35."
    offsets = [part["token_offset"] for part in parts]
    assert offsets == sorted(offsets)
    assert [token for part in parts for token in part["token_ids"]] == final["token_ids"]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"prompt": Q, "messages": [{"role": "user", "content": Q}]},
        {"prompt": Q, "max_tokenz": 5},
        {"prompt": Q, "temperature": True},
        {"prompt": Q, "stream_mode": "video"},
        {"prompt": Q, "thresholds": {"accept": 0.5}},
        {"prompt": Q, "sparse": {"retention": 2}},
        {"prompt": [1.5]},
    ],
)
def test_a_native_request_that_makes_no_sense_is_refused(served: Any, body: dict[str, Any]) -> None:
    response = served.post("/generate", body)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


def finished(served: Any, job: dict[str, Any]) -> dict[str, Any]:
    deadline = time.monotonic() + 20
    while job["status"] == "running" and time.monotonic() < deadline:
        time.sleep(0.02)  # Asked without a pause, it would keep the engine's thread from running.
        job = served.get(f"/v1/jobs/{job['id']}").json()
    return job


def test_a_job_is_answered_in_the_background_and_forgotten_on_request(served: Any) -> None:
    response = served.post("/v1/jobs", {"prompt": [Q, "Q:"], "max_tokens": 32})
    assert response.status_code == 202
    assert response.headers["location"] == f"/v1/jobs/{response.json()['id']}"
    job = finished(served, response.json())
    assert (job["status"], job["results"][0]["text"], len(job["results"])) == ("finished", ANSWER, 2)
    assert 0 < job["expires_in"] <= 600
    assert served.ask("DELETE", f"/v1/jobs/{job['id']}").json()["status"] == "finished"
    assert served.get(f"/v1/jobs/{job['id']}").status_code == 404


def test_a_job_that_runs_is_cancelled_and_its_pages_are_free(served: Any) -> None:
    job = served.post("/v1/jobs", {"prompt": "Q:", "max_tokens": 450, "ignore_eos": True}).json()
    assert served.ask("DELETE", f"/v1/jobs/{job['id']}").json()["status"] == "cancelled"
    served.get("/health")
    assert served.get("/ready").json()["requests"] == 0
    deadline = time.monotonic() + 10
    while (pages := served.get("/ready").json()["kv_pages"])["free"] < pages["total"]:
        time.sleep(0.02)
        assert time.monotonic() < deadline


def test_a_job_that_cannot_be_served_is_refused_at_once(served: Any) -> None:
    assert served.post("/v1/jobs", {"prompt": "word " * 600}).status_code == 400
    assert served.get("/v1/jobs/job-none").status_code == 404


def test_finished_jobs_expire_and_only_so_many_are_kept(served: Any) -> None:
    server = served.with_options(ServeOptions(jobs=JobsSection(job_ttl=0.3, max_jobs=1)))
    job = finished(server, server.post("/v1/jobs", {"prompt": Q}).json())
    assert job["status"] == "finished"
    full = server.post("/v1/jobs", {"prompt": Q})
    assert (full.status_code, full.json()["error"]["code"]) == (429, "jobs_full")
    time.sleep(0.4)
    assert server.get(f"/v1/jobs/{job['id']}").status_code == 404
    another = server.post("/v1/jobs", {"prompt": Q})
    assert another.status_code == 202
    finished(server, another.json())  # its steps must not be counted by the tests that follow


@given(st.text(st.characters(codec="ascii", categories=["L", "N", "P", "Zs"]), min_size=1, max_size=30))
@settings(max_examples=20)
def test_texts_survive_tokens(served: Any, text: str) -> None:
    told = served.post("/tokenize", {"prompt": text}).json()
    assert told["count"] == len(told["tokens"])
    assert served.post("/detokenize", {"tokens": told["tokens"]}).json()["prompt"] == text


def test_a_conversation_is_tokenized_as_it_would_be_answered(served: Any) -> None:
    one = served.post("/tokenize", {"messages": [{"role": "user", "content": Q}]}).json()
    assert one == served.post("/tokenize", {"prompt": Q}).json()
    two = [{"role": "system", "content": "Sum."}, {"role": "user", "content": "Q"}]
    lines = "system: Sum.\nuser: Q\nassistant:"
    assert served.post("/tokenize", {"messages": two}).json() == served.post("/tokenize", {"prompt": lines}).json()
    assert served.post("/tokenize", {}).status_code == 400


def test_probes_tell_how_the_server_is(served: Any) -> None:
    assert served.get("/health").json() == {"status": "ok"}
    ready = served.get("/ready").json()
    assert (ready["ready"], ready["engine"], ready["draining"]) == (True, "ready", False)
    assert served.get("/version").json()["model"] == "tiny/llada"


def test_metrics_count_what_happened(served: Any) -> None:
    server = served.with_options(ServeOptions())
    server.post("/v1/completions", {"prompt": Q})
    server.post("/v1/completions", {"prompt": ""})
    lines = server.get("/metrics").text.splitlines()
    assert 'diffulex_requests_total{reason="stop_eos"} 1.0' in lines
    assert 'diffulex_tokens_total{kind="visible"} 17.0' in lines
    assert 'diffulex_forwards_total{kind="decode"} 3.0' in lines
    assert 'diffulex_http_requests_total{route="/v1/completions",status="200"} 1.0' in lines
    assert 'diffulex_http_requests_total{route="/v1/completions",status="400"} 1.0' in lines
    assert "diffulex_engine_steps_total 3.0" in lines
    assert "diffulex_time_to_first_token_seconds_count 1.0" in lines
    assert "diffulex_requests_running 0.0" in lines
    assert 'diffulex_kv_pages{state="used"} 0.0' in lines
    assert 'diffulex_kv_pages{state="cached"} 0.0' in lines  # under d2f a prompt of 20 tokens shares no page
    assert "diffulex_engine_up 1.0" in lines


def test_the_profiler_is_offered_only_where_it_is_enabled(served: Any) -> None:
    assert served.post("/start_profile", {}).status_code == 404
    server = served.with_options(ServeOptions(security=SecuritySection(enable_profiling=True)))
    response = server.post("/start_profile", {"profile_prefix": "x"})
    assert response.status_code == 409
    assert "profiler" in response.json()["error"]["message"]
    assert server.post("/start_profile", {"profile_prefix": "../x"}).status_code == 400
    assert server.post("/stop_profile", None).json() == {"status": "ok", "files": []}
    assert server.post("/v1/completions", {"prompt": Q}).status_code == 200


def test_a_profile_is_configured_when_it_begins_and_checked_as_the_configuration_is(
    served: Any, tmp_path: Path
) -> None:
    server = served.with_options(ServeOptions(security=SecuritySection(enable_profiling=True)))
    for config, about in (
        ({"torch_profiler_dir": str(tmp_path), "formats": ["video"]}, "formats"),
        ({"torch_profiler_dir": str(tmp_path), "delay_iterations": -1}, "delay_iterations"),
        ({"torch_profiler_dirs": "x"}, "has no key 'torch_profiler_dirs'"),
    ):
        refused = server.post("/start_profile", {"profiler_config": config})
        assert refused.status_code == 400, refused.text
        assert about in refused.json()["error"]["message"]
    config = {"torch_profiler_dir": str(tmp_path), "formats": ["stages"], "max_iterations": 2}
    assert server.post("/start_profile", {"profile_prefix": "p", "profiler_config": config}).json() == {"status": "ok"}
    server.post("/v1/completions", {"prompt": Q})
    assert server.post("/stop_profile", None).json()["files"] == [str(tmp_path / "p.engine.stages.csv")]


def test_the_whole_canvas_is_told_with_the_answer(served: Any) -> None:
    body = {"prompt": Q, "stop": [" The"]}
    told = served.post("/generate", body).json()
    assert told["full_token_ids"][: len(told["token_ids"])] == told["token_ids"]
    assert len(told["full_token_ids"]) % 4 == 0
    assert len(told["full_token_ids"]) > len(told["token_ids"])
    decided = [token for token in told["full_token_ids"] if token is not None]
    assert served.post("/detokenize", {"tokens": decided}).json()["prompt"] == told["full_text"]
    assert told["full_text"].startswith(told["text"] + " The")
    *_, final = served.stream("/generate", {**body, "stream_mode": "block_append"})
    assert (final["full_text"], final["full_token_ids"]) == (told["full_text"], told["full_token_ids"])


@pytest.mark.parametrize("mode", ["denoise", "block_append"])
def test_the_speed_of_an_answer_is_told_while_it_is_made(served: Any, mode: str) -> None:
    *events, final = served.stream("/generate", {"prompt": Q, "stream_mode": mode})
    spent = [event["engine_decode_time_s"] for event in events]
    assert spent == sorted(spent)
    assert 0 < spent[0] <= spent[-1] <= final["engine_decode_time_s"] * 1.001
    counts = [event["engine_decode_tokens"] for event in events]
    assert counts == sorted(counts)
    assert events[-1]["engine_decode_tps"] == pytest.approx(counts[-1] / spent[-1])


def test_prompts_are_submitted_and_fetched_as_with_dllm_serve(served: Any) -> None:
    body = {"prompts": [Q, "Q:"], "gen_length": 48}
    told = served.post("/v1/generate_batch", body).json()
    assert told["status"] == "submitted"
    deadline = time.monotonic() + 20
    results = [served.get(f"/v1/result/{each}").json() for each in told["request_ids"]]
    while any(each["status"] == "running" for each in results) and time.monotonic() < deadline:
        time.sleep(0.02)
        results = [served.get(f"/v1/result/{each}").json() for each in told["request_ids"]]
    assert [each["status"] for each in results] == ["finished"] * 2
    assert results[0] == {"request_id": told["request_ids"][0], "status": "finished", "text": ANSWER, "error": None}
    assert served.get(f"/v1/jobs/{told['request_ids'][1]}").json()["results"][0]["text"] == results[1]["text"]
    assert served.ask("DELETE", f"/v1/result/{told['request_ids'][0]}").json()["text"] == ANSWER
    assert served.get(f"/v1/result/{told['request_ids'][0]}").status_code == 404
    short = served.post("/v1/generate", {"prompt": "Q:"}).json()["request_ids"]
    job = finished(served, served.get(f"/v1/jobs/{short[0]}").json())
    assert len(job["results"][0]["token_ids"]) <= 32


def test_of_a_batch_that_cannot_be_served_whole_nothing_is(served: Any) -> None:
    server = served.with_options(ServeOptions(jobs=JobsSection(max_jobs=2)))
    assert server.post("/v1/generate_batch", {"prompts": ["Q:"] * 3}).status_code == 429
    assert len(server.post("/v1/generate_batch", {"prompts": ["Q:"] * 2}).json()["request_ids"]) == 2


def test_the_configuration_is_told_with_who_set_it_and_without_secrets(served: Any) -> None:
    options = read_options(
        table={"max_queue": 9}, file_name="f.yaml", environ={"DIFFULEX_SERVE__API_KEY": "xyzzy"}, typed={"port": "3"}
    )
    response = served.with_options(options).get("/v1/config", headers={"Authorization": "Bearer xyzzy"})
    told = response.json()
    assert "xyzzy" not in response.text
    serve = {row["key"]: row for row in told["serve"]}
    assert serve["max_queue"]["set_by"] == {"source": "file", "detail": "f.yaml"}
    assert (serve["port"]["value"], serve["port"]["set_by"]["source"]) == (3, "user")
    assert serve["api_key"]["value"] == "(set)"
    assert serve["restart"]["set_by"]["source"] == "default"
    keys = {row["key"]: row for row in told["keys"]}
    assert keys["model"]["value"] == "tiny/llada"
    assert keys["model"]["set_by"] == {"source": "user", "detail": "the caller"}
    assert (told["model_family"], told["decoding_strategy"]) == ("llada", "d2f")
    assert {row["key"]: row["value"] for row in served.get("/v1/config").json()["serve"]}["api_key"] is None


def test_each_replica_is_told_of(served: Any) -> None:
    served.post("/v1/completions", {"prompt": Q})
    [replica] = served.get("/ready").json()["replicas"]
    assert (replica["state"], replica["running"], replica["waiting"], replica["loading"]) == ("ready", 0, 0, None)
    assert (replica["deaths"], replica["restarts"], replica["last_error"]) == (0, 0, None)
    assert 0 <= replica["last_step_age_s"] < 60
    assert replica["kv_pages"]["free"] == replica["kv_pages"]["total"] > 0
    lines = served.get("/metrics").text.splitlines()
    assert 'diffulex_engine_restarts_total{replica="0"} 0.0' in lines
    assert 'diffulex_replica_up{replica="0"} 1.0' in lines
    assert 'diffulex_replica_requests{replica="0",state="running"} 0.0' in lines


def test_the_time_of_forwards_is_told_by_stage(served: Any) -> None:
    server = served.with_options(ServeOptions())
    server.post("/v1/completions", {"prompt": Q})
    found = re.findall(
        r'^diffulex_engine_stage_seconds_total\{stage="(\w+)"\} (\S+)$', server.get("/metrics").text, re.M
    )
    stages = {name: float(value) for name, value in found}
    assert stages.keys() == {"schedule", "pack", "forward", "sample", "copy", "update", "other"}
    whole = re.search(r"^diffulex_engine_step_seconds_sum (\S+)$", server.get("/metrics").text, re.M)
    assert whole is not None
    assert 0 < stages["forward"] < sum(stages.values()) <= float(whole[1]) * 1.01
