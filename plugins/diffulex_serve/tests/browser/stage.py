"""What the tests of the page share: what a user does most, and streams that are made up."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
from playwright.sync_api import BrowserContext, Locator, Page, expect

sys.path.insert(0, str(Path(__file__).parent))

from site_of_tests import Site

Q = "Q: Ann has 12 apples, buys 30 more and gives away 7. How many are left?"
ANSWER = "12 + 30 = 42. 42 - 7 = 35. The answer is 35."
OTHER = "Q: There are 20 oranges in a box. Leo puts in 16 and removes 1. How many are left?"
OTHER_ANSWER = "20 + 16 = 36. 36 - 1 = 35. The answer is 35."

expect.set_options(timeout=30_000)


def opened(context: BrowserContext, url: str) -> Page:
    """A tab with the page, once the server answered it."""
    page = context.new_page()
    page.goto(url)
    expect(page.locator(".status").first).not_to_have_text("Asking the server…")
    return page


def part(page: Page | Locator, name: str) -> Locator:
    """A part of a side, such as `answer`."""
    return page.locator(f"[data-part={name}]")


def unfold(page: Page, group: str) -> None:
    """Open a group of settings."""
    details = page.locator("details", has=page.get_by_text(group, exact=True))
    if details.get_attribute("open") is None:
        details.locator("summary").click()


def generate(page: Page, prompt: str = Q) -> None:
    page.get_by_label("Prompt", exact=True).fill(prompt)
    page.keyboard.press("Enter")


def ask_for_long(page: Page, tokens: int = 440) -> None:
    """Begin an answer that takes a while: a token in each forward."""
    unfold(page, "Denoising")
    page.get_by_label("Accept above").fill("1")
    unfold(page, "Sampling")
    page.get_by_label("Most tokens").fill(str(tokens))
    page.get_by_label("Go on past the end of text").check()
    generate(page)


def expect_done(page: Page | Locator, text: str = ANSWER) -> None:
    expect(part(page, "status")).to_contain_text("Done: ")
    expect(part(page, "answer")).to_have_text(text)


def idle(sites: Site) -> bool:
    """Whether the engine has nothing to do and all of its pages, within some seconds."""
    for _ in range(200):
        state = httpx.get(f"{sites.url}/ready").json()
        if state["requests"] == 0 and state["kv_pages"]["free"] == state["kv_pages"]["total"]:
            return True
        time.sleep(0.05)
    return False


START = {"event": "start", "prompt_tokens": 3, "model": "m", "strategy": "s", "block_size": 4, "mask_symbol": "?"}


def ended(token_ids: Sequence[int], text: str) -> dict[str, Any]:
    """The last event of an answer."""
    usage = {"completion_tokens": len(token_ids), "nfe": 1, "tpf": 1, "decode_time": 0.1, "ttft": 0.05}
    told = {"finish_reason": "stop", "stop_detail": "stop_eos", "usage": usage}
    return {"event": "end", **told, "text": text, "token_ids": list(token_ids)}


def numbered(*events: dict[str, Any]) -> list[dict[str, Any]]:
    """Events as they stand in a stream."""
    return [{"v": 1, "id": "x", "seq": seq, "step": 0, "nfe": 0, **event} for seq, event in enumerate(events)]


def frames(*events: dict[str, Any]) -> str:
    """The body of a stream."""
    return "".join(f"data: {json.dumps(event)}\n\n" for event in numbered(*events))


def lines(events: Sequence[dict[str, Any]]) -> str:
    """Events as they are saved."""
    return "".join(f"{json.dumps(event)}\n" for event in events)


def long_stream(tokens: int, *, block: int = 32, each: int = 4) -> list[dict[str, Any]]:
    """The events of an answer that decides so many tokens in each forward, in any order within a block."""
    events: list[dict[str, Any]] = [START]
    nfe = 0
    for number, start in enumerate(range(0, tokens, block)):
        events.append({"event": "block_open", "block": number, "start": start, "len": block, "nfe": nfe})
        order = sorted(range(start, start + block), key=lambda at: (at * 7919) % 104729)
        for first in range(0, block, each):
            nfe += 1
            pos = order[first : first + each]
            changed = {"token_ids": pos, "text": [f" w{at}" for at in pos], "confidence": [at % 10 / 10 for at in pos]}
            events.append({"event": "fill", "block": number, "pos": pos, "nfe": nfe, **changed})
        ids = list(range(start, start + block))
        text = "".join(f" w{at}" for at in ids)
        final = {"block": number, "start": start, "token_ids": ids, "text": text, "complete": True}
        events.append({"event": "block_commit", "nfe": nfe, **final})
    ids = list(range(tokens))
    return numbered(*events, {**ended(ids, "".join(f" w{at}" for at in ids)), "nfe": nfe})
