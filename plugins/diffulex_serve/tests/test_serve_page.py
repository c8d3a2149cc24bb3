"""The page is made of files of the package that load nothing from elsewhere, and are there before a key is typed."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from importlib.resources import files
from typing import Any

import pytest

from diffulex_serve.http.schemas import Generate
from diffulex_serve.options import SecuritySection, ServeOptions
from diffulex_serve.page.routes import PAGE_PATHS

ASSETS = {path.name: path.read_text(encoding="utf-8") for path in (files("diffulex_serve.page") / "assets").iterdir()}
SCRIPTS = sorted(name for name in ASSETS if name.endswith(".js"))


class Elements(HTMLParser):
    """The start tags of a document."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


PAGE = Elements(ASSETS["index.html"]).tags
IDS = [attributes["id"] for _, attributes in PAGE if "id" in attributes]


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


def test_a_browser_may_do_nothing_but_talk_to_this_server(served: Any) -> None:
    policy = served.get("/").headers["content-security-policy"]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules.pop("default-src") == "'none'"
    assert set(rules.values()) == {"'self'", "'none'"}
    assert {"script-src", "style-src", "connect-src"} <= {name for name, value in rules.items() if value == "'self'"}
    assert {"base-uri", "form-action", "frame-ancestors"} <= {
        name for name, value in rules.items() if value == "'none'"
    }


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
    labelled = {attributes["for"] for tag, attributes in PAGE if tag == "label" and "for" in attributes}
    for tag, attributes in PAGE:
        assert not any(attribute.startswith("on") or attribute == "style" for attribute in attributes)
        assert tag != "style"
        assert tag != "script" or attributes["src"] == "page/app.js"
        if tag in ("input", "textarea"):
            assert attributes.get("id") in labelled or "name" in attributes  # those with names stand inside of labels
    assert len(IDS) == len(set(IDS))


def test_scripts_find_what_they_look_for() -> None:
    assert set(re.findall(r'\bat\("([\w-]+)"\)', ASSETS["app.js"])) <= set(IDS)
    for name in SCRIPTS:
        for module, names in re.findall(r'import \{([^}]*)\} from "\./([\w.]+)"', ASSETS[name], re.DOTALL) or []:
            exported = re.findall(r"export (?:async )?(?:function\*? |const |class )(\w+)", ASSETS[names])
            assert {each.strip() for each in module.split(",")} <= set(exported)


def test_what_the_controls_ask_for_is_known_to_the_server() -> None:
    controls = {attributes["name"] for tag, attributes in PAGE if tag == "input" and "name" in attributes}
    assert not controls & set(IDS)  # a form finds controls by either
    assert controls - {"as_message", "accept_threshold"} <= set(Generate.model_fields)
    assert controls >= {"max_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "max_nfe", "stop", "ignore_eos"}
