"""The page is made of files of the package that load nothing from elsewhere, and are there before a key is typed."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from importlib.resources import files
from typing import Any

import attrs
import pytest
from hypothesis import given, strategies as st

from diffulex_core.sampling_params import DecodingThresholds
from diffulex_serve.http.schemas import Generate
from diffulex_serve.options import SecuritySection, ServeOptions
from diffulex_serve.page.routes import PAGE_PATHS, policy

ASSETS = {path.name: path.read_text(encoding="utf-8") for path in (files("diffulex_serve.page") / "assets").iterdir()}
SCRIPTS = sorted(name for name in ASSETS if name.endswith(".js"))
CONTROLS = ("input", "textarea", "select")
OWN = {"as_message", "remember", "system", "special", "colour", "layout"}
"""Controls that are no fields of a request by their own names."""


@attrs.frozen
class Element:
    """A start tag, and whether it stands in a label."""

    tag: str
    attributes: dict[str, str | None]
    labelled: bool


class Elements(HTMLParser):
    """The start tags of a document."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[Element] = []
        self._labels = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._labels += tag == "label"
        self.found.append(Element(tag, dict(attrs), self._labels > 0))

    def handle_endtag(self, tag: str) -> None:
        self._labels -= tag == "label"


PAGE = Elements(ASSETS["index.html"]).found
IDS = [each.attributes["id"] for each in PAGE if "id" in each.attributes]
NAMES = {each.attributes["name"] for each in PAGE if each.tag in CONTROLS and "name" in each.attributes}


def test_every_file_is_served_as_what_it_is(served: Any) -> None:
    assert {f"/page/{name}" for name in ASSETS if name != "index.html"} | {"/"} == PAGE_PATHS
    kinds = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
    for path in PAGE_PATHS:
        response = served.get(path)
        name = path.removeprefix("/page/") if path != "/" else "index.html"
        assert (response.status_code, response.text) == (200, ASSETS[name])
        assert response.headers["content-type"].startswith(kinds[name.rpartition(".")[2]])
        assert response.headers["x-content-type-options"] == "nosniff"
    for path in ("/page/", "/page/nothing.js", "/page/../routes.py", "/page/%2e%2e/routes.py"):
        assert served.get(path).status_code == 404
    assert served.ask("POST", "/").status_code == 405


def rules_of(text: str) -> dict[str, str]:
    return dict(rule.split(" ", 1) for rule in text.split("; "))


def test_a_browser_may_do_nothing_but_talk_to_this_server(served: Any) -> None:
    for path in PAGE_PATHS:
        rules = rules_of(served.get(path).headers["content-security-policy"])
        assert rules.pop("default-src") == "'none'"
        assert set(rules.values()) == {"'self'", "'none'"}
        own = {name for name, value in rules.items() if value == "'self'"}
        assert own >= {"script-src", "style-src", "connect-src"}
        assert {"base-uri", "form-action", "frame-ancestors"} <= rules.keys() - own


@pytest.mark.parametrize(
    ("address", "source"),
    [
        ("http://127.0.0.1:8001", "http://127.0.0.1:8001"),
        ("https://other.example/behind/a/proxy/", "https://other.example"),
        ("http://h", "http://h"),
    ],
)
def test_a_page_that_names_a_second_server_may_talk_to_it_as_well(served: Any, address: str, source: str) -> None:
    told = served.get("/", params={"with": address}).headers["content-security-policy"]
    assert rules_of(told) == {**rules_of(policy()), "connect-src": f"'self' {source}"}


@pytest.mark.parametrize(
    "address",
    ["", "*", "https:", "http://*", "http://*.example", "javascript:alert(1)", "data:x", "http://a;script-src *", "//a",
     "http://a b", "http://a\nb", "http://u:p@a", "http://a?b", "http://a'unsafe-inline'", "ws://a", "http://-a"],
)  # fmt: skip
def test_what_is_no_server_changes_no_policy(address: str) -> None:
    assert policy(address) == policy()


@given(st.text(st.sampled_from("htps:/.-*;,' \n\r\t19aZ@[]?#%é"), max_size=20))
def test_nothing_that_is_named_adds_more_than_one_source(text: str) -> None:
    for address in (text, f"http://{text}", f"https://a{text}"):
        told = policy(address)
        assert re.fullmatch(r"[\x20-\x7e]+", told)
        changed = {name for name, value in rules_of(told).items() if value != rules_of(policy())[name]}
        assert changed <= {"connect-src"}
        assert re.fullmatch(r"'self'( https?://[a-zA-Z0-9.:-]+)?", rules_of(told)["connect-src"])


def test_the_page_comes_without_a_key_and_what_it_asks_for_does_not(served: Any) -> None:
    locked = served.with_options(ServeOptions(security=SecuritySection(api_key="secret")))
    assert {locked.get(path).status_code for path in PAGE_PATHS} == {200}
    assert {locked.get(path).status_code for path in ("/version", "/page/nothing.js", "/page", "/index.html")} == {401}
    assert not any("secret" in locked.get(path).text for path in PAGE_PATHS)


def test_the_page_is_no_part_of_the_api(served: Any) -> None:
    assert not PAGE_PATHS & served.get("/openapi.json").json()["paths"].keys()


@pytest.mark.parametrize("name", sorted(ASSETS))
def test_nothing_is_loaded_from_elsewhere_or_written_into_the_document(name: str) -> None:
    addresses = re.findall(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]{2,}[^\s\"']*", ASSETS[name])
    assert [address for address in addresses if "www.w3.org/2000/svg" not in address] == []
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", ASSETS[name])


def test_the_document_holds_no_script_and_no_style_and_names_every_control() -> None:
    labelled = {each.attributes["for"] for each in PAGE if each.tag == "label" and "for" in each.attributes}
    for each in PAGE:
        assert not any(name.startswith("on") or name == "style" for name in each.attributes)
        assert each.tag != "style"
        assert each.tag != "script" or each.attributes["src"] == "page/app.js"
        if each.tag in CONTROLS:
            assert each.labelled or each.attributes.get("id") in labelled or each.attributes.get("aria-label")
        if each.tag == "button":
            assert each.attributes["type"] in ("submit", "button")
    assert len(IDS) == len(set(IDS))
    assert not NAMES & set(IDS)  # a form finds controls by either


def test_scripts_find_what_they_look_for() -> None:
    assert set(re.findall(r'\bat\("([\w-]+)"\)', ASSETS["app.js"])) <= set(IDS)
    parts = {each.attributes["data-part"] for each in PAGE if "data-part" in each.attributes}
    used = re.findall(r'\bparts(?:\.([a-z]+)\b|\["([\w-]+)"\])', ASSETS["side.js"])
    assert {"".join(names) for names in used} <= parts
    for name in SCRIPTS:
        for module, names in re.findall(r'import \{([^}]*)\} from "\./([\w.]+)"', ASSETS[name], re.DOTALL) or []:
            exported = re.findall(r"export (?:async )?(?:function\*? |const |class )(\w+)", ASSETS[names])
            assert {each.strip() for each in module.split(",")} <= set(exported)


def test_what_the_controls_ask_for_is_known_to_the_server() -> None:
    thresholds = {name for name in NAMES if name and name.endswith("_threshold")}
    assert thresholds == {field.name for field in attrs.fields(DecodingThresholds)}
    assert NAMES - OWN - thresholds <= set(Generate.model_fields)
    untyped = {"logprobs", "logit_bias", "sparse", "stop_token_ids", "skip_empty_steps", "skip_special_tokens"}
    body = {"prompt", "messages", "stream", "stream_mode", "detail", "snapshot_every", "user", "thresholds"}
    assert set(Generate.model_fields) - NAMES == untyped | body


def test_a_server_tells_what_the_page_shows_in_empty_fields(served: Any) -> None:
    told = served.get("/version").json()
    assert told["chat_template"] is False
    defaults = told["sampling_defaults"]
    assert (defaults["max_tokens"], defaults["temperature"], defaults["stop"]) == (64, 0.0, [])
    assert NAMES - OWN - {"mask_symbol", "min_interval_ms"} <= defaults.keys() | {
        field.name for field in attrs.fields(DecodingThresholds)
    }
