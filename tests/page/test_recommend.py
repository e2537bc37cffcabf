"""The page's list of recommendations."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from tests.programs import package
from tests.serving.conftest import Process

from .answers import HOSTILE, best, places, play, problem, recommendation

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

pytestmark = pytest.mark.system
expect = package("playwright.sync_api").expect
Look = Callable[..., "Page"]


def recommend(page: Page, user: str = "138") -> None:
    """Ask for somebody's best."""
    page.get_by_label("user", exact=True).last.fill(user)
    page.get_by_role("button", name="Recommend").click()


def rows(page: Page) -> Locator:
    """The rows of the list."""
    return page.locator("#recommend-answer tbody tr")


def looked(look: Look, answer: Any) -> Page:
    """A page whose server recommends this, after it was asked."""
    page = look(lambda page: play(page, "recommend?*", answer))
    recommend(page)
    return page


def test_of_the_server(look: Look, server: Process) -> None:
    """A real server's list is shown as it came: the order, titles as text whatever they look like, ratings."""
    page = look()
    recommend(page, "9")
    best = server.http.get("/recommend?user=9&k=10&exclude_rated=true").json()["items"]
    expect(rows(page)).to_have_count(len(best))
    expect(rows(page).locator("button")).to_have_text([item["attributes"]["title"] for item in best])
    expect(rows(page).locator("td.number:nth-child(3)")).to_have_text([f"{item['rating']:.2f}" for item in best])
    assert HOSTILE in [item["attributes"]["title"] for item in best]
    assert page.locator("img, main script").count() == 0
    assert page.evaluate("window.hacked") is None
    rows(page).filter(has_text=HOSTILE).get_by_role("button").click()
    page.get_by_role("button", name="Predict").click()
    expect(page.locator(".rating")).to_contain_text("user 9 and movie 2000")


def test_list(look: Look) -> None:
    """Each item has its rank, title, other attributes, rating and disagreement, in the order that the server gave."""
    page = looked(look, recommendation(best(50, 4.456, 0.12), best(1001, 4.5, 0.999, cold_start=["movie"])))
    header = page.locator("#recommend-answer thead th")
    expect(header).to_have_text(["", "movie", "rating", "disagrees more than"])
    first, second = rows(page).all()
    expect(first).to_have_text("1Film 5050 · War, Drama · 19774.4612\u202f%")
    expect(second).to_have_text("2Film 1001 new1001 · War, Drama · 19774.5099.9\u202f%")
    assert places(first.locator(".filled"), "width", 1) == [12]
    expect(page.locator("#recommend-said")).to_have_text(
        "The best 2 for user 138. Choose one to put it into the form above."
    )


def test_question(look: Look) -> None:
    """User, number and whether rated ones are left out go to the server as they stand in the form."""
    asked: list[list[Any]] = []
    page = look(lambda page: asked.append(play(page, "recommend?*", recommendation())))
    recommend(page, " 7 ")
    expect(page.locator("#recommend-said")).to_have_text("Nothing is left for user 138.")
    page.get_by_label("how many").fill("3")
    page.get_by_label("leave out what was rated").uncheck()
    with page.expect_response("**/recommend?*"):
        recommend(page, "9")
    assert [request.url.rpartition("/")[2] for request in asked[0]] == [
        "recommend?user=7&k=10&exclude_rated=true",
        "recommend?user=9&k=3&exclude_rated=false",
    ]


def test_without_a_title(look: Look) -> None:
    """An item without attributes, or without the one that names it, goes by its id."""
    page = looked(look, recommendation(best(50, 4, 0.5, attributes={}), best(51, 4, 0.5, attributes={"year": 1999})))
    expect(rows(page).locator("button")).to_have_text(["50", "51"])
    expect(rows(page).locator("small")).to_have_text(["", "1999"])


def test_choice(look: Look) -> None:
    """A click on a row puts the pair into the prediction form, whatever stood there, and Enter then predicts it."""
    page = looked(look, recommendation(best(50, 4, 0.5), best(1001, 4, 0.5)))
    movie = page.get_by_role("group", name="movie")
    movie.get_by_label("new").check()
    page.get_by_role("group", name="user").get_by_label("id").fill("7")
    rows(page).nth(1).locator("td").nth(1).click()
    expect(page.get_by_role("group", name="user").get_by_label("id")).to_have_value("138")
    expect(movie.get_by_label("id")).to_have_value("1001")
    expect(movie.get_by_label("known")).to_be_checked()
    expect(movie.get_by_label("title")).to_be_hidden()
    expect(page.get_by_role("button", name="Predict")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator(".rating")).to_contain_text("user 138 and movie 1001")


def test_choice_by_keyboard(look: Look) -> None:
    """Every row has a button for those without a mouse."""
    page = looked(look, recommendation(best(50, 4, 0.5), best(1001, 4, 0.5)))
    expect(rows(page)).to_have_count(2)
    page.get_by_role("button", name="Recommend").focus()
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Film 50")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("group", name="movie").get_by_label("id")).to_have_value("50")


def test_large_ids(look: Look) -> None:
    """An id that a JavaScript number cannot hold is chosen digit by digit."""
    page = looked(look, recommendation(best(9007199254740993, 4, 0.5), user=-9223372036854775807))
    rows(page).locator("button").click()
    expect(page.get_by_role("group", name="movie").get_by_label("id")).to_have_value("9007199254740993")
    expect(page.get_by_role("group", name="user").get_by_label("id")).to_have_value("-9223372036854775807")


def test_titles_are_text(look: Look) -> None:
    """A title that looks like a program is shown, not run."""
    item = best(50, 4, 0.5, attributes={"title": HOSTILE, "genres": [HOSTILE], HOSTILE: HOSTILE})
    page = looked(look, recommendation(item))
    expect(rows(page).locator("button")).to_have_text(HOSTILE)
    expect(rows(page).locator("small")).to_have_text(f"50 · {HOSTILE} · {HOSTILE}")
    assert page.locator("img, main script").count() == 0
    assert page.evaluate("window.hacked") is None


def test_refusal(look: Look) -> None:
    """What the server says is shown in place of the list before."""
    page = looked(look, recommendation(best(50, 4, 0.5)))
    expect(rows(page)).to_have_count(1)
    play(page, "recommend?*", problem(404, "There is no user 4242."), 404)
    recommend(page, "4242")
    expect(page.locator("#recommend-problem")).to_have_text("There is no user 4242.")
    expect(rows(page)).to_have_count(0)
    expect(page.locator("#recommend-said")).to_be_empty()
    play(page, "recommend?*", recommendation(best(50, 4, 0.5)))
    recommend(page)
    expect(rows(page)).to_have_count(1)
    expect(page.locator("#recommend-problem")).to_be_empty()
