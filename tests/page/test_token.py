"""The page before a server that wants a token."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.programs import package
from tests.serving.conftest import Process
from tests.serving.toy import Toy

from .answers import problem

if TYPE_CHECKING:
    from playwright.sync_api import Page, Request, Route

pytestmark = pytest.mark.system
expect = package("playwright.sync_api").expect
Look = Callable[..., "Page"]


class Guarded:
    """A server that answers nothing but the page without `secret`."""

    def __init__(self) -> None:
        self.refused: list[Request] = []
        self.secret = "secret"

    def prepare(self, page: Page) -> None:
        """Stand before this page's server, under a clock that stands still."""
        page.clock.install()
        for path in ("info", "monitor", "openapi.json", "predict?*"):
            page.route(f"**/{path}", self._answer)

    def _answer(self, route: Route) -> None:
        if route.request.headers.get("authorization") == f"Bearer {self.secret}":
            route.continue_()
        else:
            self.refused.append(route.request)
            route.fulfill(status=401, json=problem(401, "send the server's token"))


def test_of_the_server(browser: Any, toy: Toy, tmp_path: Path) -> None:
    """A real server with a token gives the page to everybody, and answers to those who know it."""
    toy.write(tmp_path)
    server = Process(tmp_path / "log", "--model-repo", str(tmp_path), "--drain-s", "0", "--token", "s3cret")
    try:
        server.settled()
        page = browser.new_page()
        page.goto(server.url)
        page.get_by_label("Token").fill("s3cret")
        page.keyboard.press("Enter")
        expect(page.locator("#serving")).to_have_text("levi/1 is ready")
        page.get_by_role("group", name="user").get_by_label("id").fill("138")
        page.get_by_role("group", name="movie").get_by_label("id").fill("357")
        page.get_by_role("button", name="Predict").click()
        expect(page.locator(".rating")).to_contain_text(f"{toy.rating(138, 357):.2f}")
        page.close()
    finally:
        server.close()


def test_token(look: Look) -> None:
    """Without the token there is a field for it, ready to be written into; with it the page is as ever."""
    guard = Guarded()
    page = look(guard.prepare)
    field = page.get_by_label("Token")
    expect(field).to_be_focused()
    expect(field).to_have_attribute("type", "password")
    expect(page.locator("#token-said")).to_have_text("This server wants a token.")
    expect(page.locator("#verdict")).to_have_text("Nothing is known without the server’s token.")
    page.keyboard.type("wrong")
    page.keyboard.press("Enter")
    expect(page.locator("#token-said")).to_have_text("The server refused this token.")
    expect(field).to_have_value("")
    page.keyboard.type("secret")
    page.keyboard.press("Enter")
    expect(page.locator("#serving")).to_have_text("levi/1 is ready")
    expect(field).to_be_hidden()
    page.get_by_role("group", name="user").get_by_label("id").fill("138")
    page.get_by_role("group", name="movie").get_by_label("id").fill("357")
    page.get_by_role("button", name="Predict").click()
    expect(page.locator(".rating")).to_be_visible()


def test_token_stays_in_the_tab(look: Look) -> None:
    """It lives as long as the tab: through a reload, not into another one; nor is it in an address or a cookie."""
    page = look(Guarded().prepare)
    page.get_by_label("Token").fill("secret")
    page.get_by_role("button", name="Use it").click()
    expect(page.locator("#serving")).to_have_text("levi/1 is ready")
    assert page.evaluate("[localStorage.length, document.cookie, location.search]") == [0, "", ""]
    assert page.evaluate("({ ...sessionStorage })") == {"levi-token": "secret"}
    page.reload()
    expect(page.locator("#serving")).to_have_text("levi/1 is ready")
    expect(page.get_by_label("Token")).to_be_hidden()
    other = page.context.new_page()
    Guarded().prepare(other)
    other.goto(page.url)
    expect(other.get_by_label("Token")).to_be_visible()


def test_token_can_be_forgotten(look: Look) -> None:
    """A button takes it away; it is there only when there is something to forget, with a word about the links."""
    page = look(Guarded().prepare)
    expect(page.get_by_role("button", name="Forget")).to_have_count(0)
    page.get_by_label("Token").fill("secret")
    page.get_by_role("button", name="Use it").click()
    expect(page.get_by_text("These links want the token too")).to_be_visible()
    page.get_by_role("button", name="Forget").click()
    expect(page.get_by_label("Token")).to_be_visible()
    assert page.evaluate("sessionStorage.length") == 0


def test_refused_pages_do_not_insist(look: Look) -> None:
    """Without the token the page stops asking until it is given another one."""
    guard = Guarded()
    page = look(guard.prepare)
    expect(page.get_by_label("Token")).to_be_visible()
    page.clock.run_for(60_000)
    page.evaluate("new Promise(requestAnimationFrame)")
    assert len(guard.refused) == 1


def test_token_expires(look: Look) -> None:
    """When the token stops being right the field comes back, and what somebody writes elsewhere keeps the keyboard."""
    guard = Guarded()
    page = look(guard.prepare)
    page.get_by_label("Token").fill("secret")
    page.get_by_role("button", name="Use it").click()
    expect(page.get_by_role("button", name="Predict")).to_be_visible()
    guard.secret = "another"
    page.clock.run_for(5_000)
    expect(page.locator("#token-said")).to_have_text("The server refused this token.")
    expect(page.get_by_label("Token")).to_be_focused()
    page.get_by_role("group", name="user").get_by_label("id").fill("138")
    page.get_by_role("group", name="movie").get_by_label("id").fill("357")
    page.get_by_role("button", name="Predict").click()
    expect(page.locator("#predict-problem")).to_have_text("send the server's token")
    expect(page.get_by_role("button", name="Predict")).to_be_focused()


@pytest.mark.parametrize("token", ["two words", "naïve", " "])
def test_impossible_tokens(look: Look, token: str) -> None:
    """What no header can carry is not sent."""
    guard = Guarded()
    page = look(guard.prepare)
    page.get_by_label("Token").fill(token)
    page.get_by_role("button", name="Use it").click()
    assert page.evaluate("document.getElementById('token').validity.patternMismatch")
    assert len(guard.refused) == 1


def test_no_token_no_header(look: Look) -> None:
    """A server that wants none is sent none."""
    sent: list[str | None] = []
    page = look(lambda page: page.on("request", lambda asked: sent.append(asked.headers.get("authorization"))))
    expect(page.locator("#serving")).to_have_text("levi/1 is ready")
    expect(page.get_by_role("button", name="Forget")).to_have_count(0)
    assert {*sent} == {None}
