"""Servers, a browser and tabs for the tests of the page."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, BrowserContext, Page
from site_of_tests import Site, chromium, site
from stage import opened


@pytest.fixture(scope="session")
def sites() -> Iterator[Site]:
    with site() as running:
        yield running


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    with browser.new_context() as fresh:
        yield fresh


@pytest.fixture
def page(context: BrowserContext, sites: Site) -> Page:
    return opened(context, sites.url)
