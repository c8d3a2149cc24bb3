"""Reading a checkpoint's JSON files, and finding the checkpoint in the first place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from diffulex_core.checkpoint import read_generation_config, read_json_config
from diffulex_core.errors import CheckpointError
from diffulex_core.hookspecs import Register
from diffulex_core.host import Host
from diffulex_core.plugin import Component, hookimpl
from diffulex_core.sources import HubSource, ModelSource, resolve_model


def test_config_json_is_read_as_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "x", "auto_map": {"AutoModel": "evil.Model"}, "n": null}')
    assert read_json_config(tmp_path) == {"model_type": "x", "auto_map": {"AutoModel": "evil.Model"}, "n": None}


def test_a_missing_directory_and_a_missing_config_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such directory"):
        read_json_config(tmp_path / "absent")
    with pytest.raises(CheckpointError, match=r"config\.json is missing\. A checkpoint directory holds"):
        read_json_config(tmp_path)


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe\x00", b'{"a": 1,}'])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    for name, read in (("config.json", read_json_config), ("generation_config.json", read_generation_config)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=f"{name} cannot be read as JSON.*Download it again"):
            read(tmp_path)


@pytest.mark.parametrize("content", ["[]", "3", "null", '"text"'])
def test_json_that_is_no_object_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match="must hold a JSON object"):
        read_json_config(tmp_path)


def test_a_checkpoint_without_generation_config_recommends_nothing(tmp_path: Path) -> None:
    assert read_generation_config(tmp_path) == {}
    (tmp_path / "generation_config.json").write_text('{"temperature": 0.5}')
    assert read_generation_config(tmp_path) == {"temperature": 0.5}


@pytest.fixture
def host() -> Host:
    return Host.discover([], environ={})


class ToySource:
    """Ships `toy/good`; knows `toy/broken` but has lost it."""

    def resolve(self, name: str) -> Path | None:
        if name == "toy/broken":
            raise CheckpointError(name, ["The package data is gone. Reinstall the toy package."])
        return Path(__file__).parent if name == "toy/good" else None


@pytest.fixture
def host_with_toys() -> Host:
    plugin = ModuleType("toy_plugin")

    @hookimpl
    def diffulex_register_components(register: Register[Component]) -> None:
        register(Component(kind="model_source", name="toys", factory=f"{__name__}:ToySource"))

    vars(plugin)["diffulex_register_components"] = diffulex_register_components
    return Host.discover(["toy_plugin"], environ={}, extra=[plugin])


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names that the hub is asked for, which it never finds."""
    asked: list[str] = []

    def snapshot_download(name: str, **options: object) -> str:
        asked.append(name)
        raise LocalEntryNotFoundError("not cached, no connection")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return asked


def test_a_directory_is_its_own_source(tmp_path: Path, host: Host, no_network: list[str]) -> None:
    assert resolve_model(str(tmp_path), host) == tmp_path
    assert resolve_model(tmp_path, host) == tmp_path
    assert no_network == []


@pytest.mark.parametrize("name", ["/no/such/model", "./model", "../model", "~/no-such-model", "a/b/c", "model/"])
def test_a_path_that_does_not_exist_is_never_asked_of_the_hub(name: str, host: Host, no_network: list[str]) -> None:
    with pytest.raises(CheckpointError, match="There is no directory"):
        resolve_model(name, host)
    assert no_network == []


def test_a_file_is_not_a_model(tmp_path: Path, host: Host) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(CheckpointError, match="Give the directory that holds"):
        resolve_model(str(tmp_path / "model.safetensors"), host)


def test_a_plugins_source_is_asked_before_the_hub(host_with_toys: Host, no_network: list[str]) -> None:
    assert resolve_model("toy/good", host_with_toys) == Path(__file__).parent
    assert no_network == []


def test_a_source_that_knows_the_name_but_cannot_deliver_ends_the_search(
    host_with_toys: Host, no_network: list[str]
) -> None:
    with pytest.raises(CheckpointError) as raised:
        resolve_model("toy/broken", host_with_toys)
    assert raised.value.problems[-1] == "toys: The package data is gone. Reinstall the toy package."
    assert no_network == []


def test_an_unknown_name_lists_what_every_source_said(host_with_toys: Host, no_network: list[str]) -> None:
    with pytest.raises(CheckpointError) as raised:
        resolve_model("toy/other", host_with_toys)
    directory, toys, hub = raised.value.problems
    assert directory.startswith("directory: ")
    assert toys == "toys: it knows no model of this name."
    assert hub.startswith("hub: It is not in the local cache and the hub is out of reach. Connect to a network")
    assert no_network == ["toy/other", "toy/other"]


def test_a_name_that_nobody_knows_is_told_what_names_look_like(host_with_toys: Host, no_network: list[str]) -> None:
    with pytest.raises(CheckpointError, match="a repository of the Hugging Face hub as owner/name") as raised:
        resolve_model("other", host_with_toys)
    assert len(raised.value.problems) == 4
    assert no_network == []


def cached(complete: bool) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        if complete:
            (folder / "model.safetensors").touch()

    return write


@pytest.mark.parametrize(("complete", "downloads"), [(True, 0), (False, 1)])
def test_the_hub_is_not_contacted_for_a_model_in_the_local_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, complete: bool, downloads: int
) -> None:
    cached(complete)(tmp_path)
    contacts = []

    def snapshot_download(name: str, *, allow_patterns: list[str], local_files_only: bool = False) -> str:
        assert not any(pattern.endswith((".py", ".bin")) for pattern in allow_patterns)
        if not local_files_only:
            contacts.append(name)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert HubSource().resolve("owner/name") == tmp_path
    assert len(contacts) == downloads


def test_a_name_that_no_hub_repository_can_have_is_not_the_hubs(no_network: list[str]) -> None:
    assert HubSource().resolve("llada") is None
    assert no_network == []


def test_a_hub_id_with_illegal_characters_is_refused_before_any_connection() -> None:
    with pytest.raises(CheckpointError, match="not a valid hub id"):
        HubSource().resolve("owner/na me!")


def test_a_source_is_a_model_source_by_its_shape() -> None:
    assert isinstance(ToySource(), ModelSource)
