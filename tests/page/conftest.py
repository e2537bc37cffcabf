"""Fixtures of the page's tests: a real server over the toy model, and a real Chromium that looks at it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from tests.programs import package, program
from tests.serving.conftest import Process
from tests.serving.toy import MOVIES, Toy

from .answers import HOSTILE

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
PATIENCE_MS = 10_000


@pytest.fixture(scope="package")
def toy() -> Toy:
    """The toy model behind the page, with a title in its catalogue that looks like a program."""
    return Toy("entity", movies={**MOVIES, 2000: {"title": HOSTILE}})


@pytest.fixture(scope="package")
def server(toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A ready `levi-serve`."""
    folder = tmp_path_factory.mktemp("page")
    toy.write(folder)
    process = Process(folder / "server.log", "--model-repo", str(folder), "--drain-s", "0")
    process.settled()
    yield process
    process.close()


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """Debian's Chromium. It ends with this folder's tests, since it keeps an event loop running meanwhile."""
    executable = program("chromium-headless-shell", "chromium")
    api = package("playwright.sync_api")
    api.expect.set_options(timeout=PATIENCE_MS)
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable, args=[*FLAGS])
        yield chromium
        chromium.close()


@pytest.fixture
def look(browser: Browser, server: Process) -> Iterator[Callable[..., Page]]:
    """Opens the page in a fresh context; nothing may go wrong in it, and nothing may be asked of another server."""
    contexts: list[BrowserContext] = []
    wrong: list[str] = []

    def opened(prepare: Callable[[Page], None] = lambda _: None, **options: Any) -> Page:
        context = browser.new_context(timezone_id="UTC", **options)
        contexts.append(context)
        context.set_default_timeout(PATIENCE_MS)
        page = context.new_page()
        page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
        page.on("console", lambda said: wrong.append(said.text) if _counts(said.text) else None)
        page.on("request", lambda asked: None if asked.url.startswith(server.url) else wrong.append(asked.url))
        prepare(page)
        page.goto(server.url)
        return page

    yield opened
    for context in contexts:
        for page in context.pages:
            page.unroute_all(behavior="ignoreErrors")
        context.close()
    assert wrong == []


def _counts(said: str) -> bool:
    """Chromium reports every answer that is no success, also those that the page expects."""
    return not said.startswith("Failed to load resource")
