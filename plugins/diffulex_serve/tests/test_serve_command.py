"""The command's options are the configuration keys, and what is wrong with them is said before anything is loaded."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import attrs
import pytest
from click.testing import CliRunner

from diffulex_core.cli.app import build_cli
from diffulex_core.config.schema import build_schema, core_sections
from diffulex_core.errors import ConfigError, DiffulexError
from diffulex_core.host import Host
from diffulex_serve.chat.options import ChatOptions
from diffulex_serve.chat.settings import KNOBS
from diffulex_serve.engine.spec import EngineSpec
from diffulex_serve.journal import REQUEST_ID
from diffulex_serve.launch import listen, url_of
from diffulex_serve.logs import JsonLines, TextLines
from diffulex_serve.options import ServeOptions
from diffulex_serve.settings import divide, read_chat_options, read_options, serve_schema


@pytest.fixture(scope="module")
def host() -> Host:
    return Host.discover(environ={})


@pytest.fixture(autouse=True)
def _no_port_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFULEX_SERVE__PORT", "0")


def failed(host: Host, *arguments: str) -> str:
    result = CliRunner().invoke(build_cli(host), ["serve", *arguments], obj=host)
    assert isinstance(result.exception, DiffulexError), result.output
    return str(result.exception)


def test_the_help_shows_every_key_in_its_section(host: Host) -> None:
    text = CliRunner().invoke(build_cli(host), ["serve", "--help"], obj=host).output
    for title, schema in (("Server", serve_schema()), ("Engine", build_schema(core_sections()))):
        for spec in schema:
            flag = f"--{spec.name.replace('.', '-').replace('_', '-')} "
            header = (
                "Options" if spec.name == "model" else f"{title}: {spec.section}".replace("Server: server", "Server")
            )
            section = text.partition(f"\n{header}:\n")[2].partition("\n\n")[0]
            assert flag in section


def test_every_key_of_the_server_says_what_it_is_for() -> None:
    assert all(spec.info.help.endswith((".", "typed.")) for spec in serve_schema())
    shared = {spec.name for spec in serve_schema()} & {spec.name for spec in build_schema(core_sections())}
    assert shared == set()


def test_all_wrong_values_are_listed_at_once(host: Host) -> None:
    message = failed(host, "--model", "tiny/llada", "--port", "70000", "--max-queue", "-1", "--backend", "cloud")
    assert all(name in message for name in ("port is", "max_queue is", "backend is"))


def test_unknown_keys_are_refused_with_the_one_that_was_meant(host: Host, tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text("serve:\n  prot: 1\n")
    assert "Did you mean port?" in failed(host, "--model", "tiny/llada", "--config", str(file))
    file.write_text("serve: 3\n")
    assert "write a table" in failed(host, "--config", str(file))
    assert "page_size" in failed(host, "--model", "tiny/llada", "--set", "page_siz=16")
    assert "No model is named" in failed(host)


def test_the_command_line_is_stronger_than_the_environment_and_that_than_the_file() -> None:
    options = read_options(
        table={"port": 1, "max_queue": 1, "cors_origins": ["http://a.test"]},
        file_name="f.yaml",
        environ={"DIFFULEX_SERVE__PORT": "2", "DIFFULEX_SERVE__API_KEY": "k", "DIFFULEX_CACHE__PAGE_SIZE": "8"},
        typed={"port": "3", "enable_profiling": "true"},
    )
    assert (options.server.port, options.limits.max_queue) == (3, 1)
    assert (options.security.api_key, options.security.cors_origins) == ("k", ("http://a.test",))
    assert options.security.enable_profiling is True
    with pytest.raises(ConfigError, match="DIFFULEX_SERVE__PROT"):
        read_options(table={}, file_name="", environ={"DIFFULEX_SERVE__PROT": "2"}, typed={})


@pytest.mark.parametrize("key", ["", " ", "two words", "schlüssel", "line\n"])
@pytest.mark.parametrize("where", ["table", "environ", "typed"])
def test_a_key_that_no_header_carries_is_refused_and_not_told(where: str, key: str) -> None:
    name = "DIFFULEX_SERVE__API_KEY" if where == "environ" else "api_key"
    given: dict[str, Any] = {"table": {}, "environ": {}, "typed": {}, where: {name: key}}
    with pytest.raises(ConfigError, match="is empty or has more than printable ASCII") as refused:
        read_options(file_name="all.yaml", **given)
    assert not key.strip() or key not in str(refused.value)


def test_the_engine_sees_nothing_of_the_servers_keys() -> None:
    from diffulex_core.config import ConfigFile

    table, rest = divide(ConfigFile(name="f", values={"serve": {"port": 1}, "page_size": 16}))
    assert (table, rest) == ({"port": 1}, ConfigFile(name="f", values={"page_size": 16}))
    assert divide(None) == ({}, None)


def test_an_address_is_listened_on_or_the_reason_why_not_is_said() -> None:
    with listen("127.0.0.1", 0) as listener:
        url = url_of(listener)
        assert url.startswith("http://127.0.0.1:")
        with pytest.raises(ConfigError, match="Nothing can listen"):
            listen("127.0.0.1", int(url.rpartition(":")[2]))


def test_no_restart_is_short_for_a_key_and_copies_of_the_model_are_replicas(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[bool, int]] = []

    async def run(_: object, options: ServeOptions, **rest: Any) -> None:
        seen.append((options.recovery.restart, rest["replicas"]))

    monkeypatch.setattr("diffulex_serve.launch.run", run)
    monkeypatch.setattr("diffulex_serve.logs.configure_logs", lambda _: None)
    for arguments in (["--no-restart"], ["--data-parallel-size", "2"]):
        command = ["serve", "--model", "tiny/llada", *arguments]
        CliRunner().invoke(build_cli(host), command, obj=host, catch_exceptions=False)
    assert seen == [(False, 1), (True, 2)]


def test_logs_say_which_request_they_are_about() -> None:
    record = logging.LogRecord("diffulex_serve.access", logging.INFO, "f", 1, "%s done", ("it",), None)
    record.__dict__["facts"] = {"status": 200}
    token = REQUEST_ID.set("abc")
    try:
        told: dict[str, Any] = json.loads(JsonLines().format(record))
        assert TextLines().format(record).endswith("it done [abc]")
    finally:
        REQUEST_ID.reset(token)
    assert (told["message"], told["request_id"], told["status"], told["level"]) == ("it done", "abc", 200, "info")


def test_discovery_and_the_help_need_neither_a_server_nor_a_network() -> None:
    code = (
        "import sys; from diffulex_core.cli.app import build_cli; from diffulex_core.host import Host\n"
        "build_cli(Host.discover())\n"
        "print(sorted({'fastapi', 'uvicorn', 'zmq', 'torch', 'pydantic'} & set(sys.modules)))\n"
        "import diffulex_serve.launch; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]", "False"]  # nor does the server itself, before it has an engine, need torch


ONE_FILE = "model: tiny/llada\npage_size: 16\nserve:\n  max_queue: 7\nchat:\n  temperature: 0.5\n"


def test_one_file_serves_all_commands(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "all.yaml"
    file.write_text(ONE_FILE)
    monkeypatch.setenv("DIFFULEX_SERVE__API_KEY", "k")
    monkeypatch.setenv("DIFFULEX_CHAT__TOP_K", "3")
    told = CliRunner().invoke(build_cli(host), ["config", "explain", "--config", str(file), "page_size"], obj=host)
    assert told.exit_code == 0, told.output
    assert "16" in told.output
    seen: list[tuple[int, str | None, str]] = []

    async def run(spec: EngineSpec, options: ServeOptions, *, model: str, **_: Any) -> None:
        seen.append((options.limits.max_queue, options.security.api_key, model))
        again = EngineSpec.from_json(spec.to_json())
        assert again == spec
        config = again.load().config
        assert (config.cache.page_size, config.schedule.max_num_reqs) == (16, 3)
        assert str(config.origins["max_num_reqs"]) == "given by the command line"

    monkeypatch.setattr("diffulex_serve.launch.run", run)
    monkeypatch.setattr("diffulex_serve.logs.configure_logs", lambda _: None)
    CliRunner().invoke(
        build_cli(host), ["serve", "--config", str(file), "--max-num-reqs", "3"], obj=host, catch_exceptions=False
    )
    assert seen == [(7, "k", "tiny/llada")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("serv:\n  port: 1\n", "there is no table serv. Did you mean 'serve'?"),
        ("cachee:\n  page_size: 16\n", "Did you mean 'cache'?"),
        ("zzz:\n  a: 1\n", "The tables are "),
    ],
)
def test_a_table_that_nobody_reads_is_refused_with_the_one_that_was_meant(
    host: Host, tmp_path: Path, text: str, message: str
) -> None:
    file = tmp_path / "all.yaml"
    file.write_text(f"model: tiny/llada\n{text}")
    result = CliRunner().invoke(build_cli(host), ["config", "explain", "--config", str(file)], obj=host)
    assert isinstance(result.exception, ConfigError)
    assert message in str(result.exception)


def test_without_the_plugin_its_table_is_named_with_what_to_install(tmp_path: Path) -> None:
    without = Host.discover(environ={"DIFFULEX_DISABLE_PLUGINS": "serve"})
    file = tmp_path / "all.yaml"
    file.write_text(ONE_FILE)
    result = CliRunner().invoke(build_cli(without), ["config", "explain", "--config", str(file)], obj=without)
    assert isinstance(result.exception, ConfigError)
    assert "diffulex-serve, which is not in use" in str(result.exception)


def test_the_schema_of_config_files_knows_the_tables(host: Host) -> None:
    schema = json.loads(CliRunner().invoke(build_cli(host), ["config", "schema"], obj=host).output)
    serve, chat = schema["properties"]["serve"], schema["properties"]["chat"]
    assert {spec.name for spec in serve_schema()} == serve["properties"].keys()
    assert "temperature" in chat["properties"]
    assert "port" not in schema["properties"]
    assert serve["additionalProperties"] is False


def test_a_conversation_begins_as_file_environment_and_command_line_say() -> None:
    table = {"temperature": 0.5, "max_tokens": 9}
    options = read_chat_options(table=table, file_name="f", environ={"DIFFULEX_CHAT__TOP_K": "3"})
    assert (options.temperature, options.max_tokens, options.top_k, options.top_p) == (0.5, 9, 3, None)
    with pytest.raises(ConfigError, match="Did you mean top_p"):
        read_chat_options(table={"topp": 1}, file_name="f", environ={})
    assert {field.name for field in attrs.fields(ChatOptions)} == {knob.field for knob in KNOBS.values()}
