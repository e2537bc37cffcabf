"""The page's prediction form, in a real Chromium before a real server."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.programs import package
from tests.serving.conftest import Process
from tests.serving.toy import Toy

from .answers import HOSTILE, Held, info, monitor, places, play, problem

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page, Route

pytestmark = pytest.mark.system
expect = package("playwright.sync_api").expect
Look = Callable[..., "Page"]

ANSWER = {
    "user": 138,
    "movie": 357,
    "rating": 4.0,
    "heads": [2.0, 3.0, 5.0],
    "disagreement": 1.2472,
    "ood_score": 0.93,
    "cold_start": [],
    "model": "levi",
    "version": 1,
}


def fill(page: Page, user: str, movie: str) -> None:
    """Write both ids."""
    page.get_by_role("group", name="user").get_by_label("id").fill(user)
    page.get_by_role("group", name="movie").get_by_label("id").fill(movie)


def predict(page: Page, user: str = "138", movie: str = "357") -> None:
    """Ask for a known pair."""
    fill(page, user, movie)
    page.get_by_role("button", name="Predict").click()


def heads(page: Page) -> Locator:
    """The table of the heads."""
    return page.get_by_role("table", name="Each head’s rating")


def test_known_pair(look: Look, server: Process, toy: Toy) -> None:
    """The rating, every head's and the quantile of their disagreement are the server's, rounded for reading."""
    page = look()
    predict(page)
    expect(page.locator(".rating")).to_have_text(
        f"{toy.rating(138, 357):.2f}user 138 and movie 357, on a scale of 1 to 5"
    )
    rows = heads(page).get_by_role("row")
    expected = [f"{head:.2f}" for head in toy.heads(138, 357)]
    expect(rows.get_by_role("cell").filter(has_text=".")).to_have_text(expected)
    expect(rows.get_by_role("rowheader")).to_have_text(["1 early", "2", "3 late"])
    share = server.http.get("/predict?user=138&movie=357").json()["ood_score"]
    assert 0.01 < share < 0.99
    said = f"The heads disagree more than on {int(share * 100)}\u202f% of in-distribution pairs."
    expect(page.get_by_text(said)).to_be_visible()
    spread = f"their standard deviation is {np.std(toy.heads(138, 357)):.3f}"
    expect(page.get_by_text(spread)).to_contain_text("levi/1 took ")


def test_drawing(look: Look) -> None:
    """Dots stand where their ratings are on the scale, the line at their mean, the bar ends at the quantile."""
    page = look(lambda page: play(page, "predict?*", ANSWER))
    predict(page)
    plot = heads(page)
    assert places(plot.locator("circle"), "cx", 3) == [25, 50, 100]  # (rating - 1) / (5 - 1)
    assert places(plot.locator(".mean"), "x1", 3) == pytest.approx([100 * (10 / 3 - 1) / 4] * 3)
    assert places(plot.locator("tbody tr").first.locator(".grid"), "x1", 5) == [0, 25, 50, 75, 100]
    assert places(plot.locator(".path"), "x1", 2) == [25, 50]
    assert places(plot.locator(".path"), "x2", 2) == [50, 100]
    assert places(page.locator("#predict-plots .filled"), "width", 1) == [93]


@pytest.mark.parametrize(
    ("rating", "said"),
    [
        (2.49, "0.123. levi"),
        (2.5, "0.123; usual for ratings of 2.50 to 3.36: 0.05 to 0.14. levi"),
        (3.36, "0.123; usual for ratings of 3.36 to 5.00: 0.10 to 0.30. levi"),
        (5.0, "0.123; usual for ratings of 3.36 to 5.00: 0.10 to 0.30. levi"),
    ],
)
def test_usual_disagreement(look: Look, rating: float, said: str) -> None:
    """The heads' deviation stands beside what is usual for such ratings, where the reference knows it."""

    def prepare(page: Page) -> None:
        play(page, "monitor", monitor())
        play(page, "predict?*", {**ANSWER, "rating": rating, "disagreement": 0.123})

    page = look(prepare)
    expect(page.locator("#verdict")).to_have_attribute("data-kind", "ok")
    predict(page)
    expect(page.locator("#predict-plots .note")).to_contain_text(f"their standard deviation is {said}")


def test_usual_disagreement_without_a_monitor(look: Look) -> None:
    """Nothing is called usual when there is no monitor to say it."""

    def prepare(page: Page) -> None:
        play(page, "monitor", {"status": "off"})
        play(page, "predict?*", {**ANSWER, "disagreement": 0.123})

    page = look(prepare)
    expect(page.locator("#verdict")).to_have_attribute("data-kind", "off")
    predict(page)
    expect(page.locator("#predict-plots .note")).to_contain_text("their standard deviation is 0.123. levi")


def test_heads_beyond_the_scale(look: Look) -> None:
    """Heads are not clipped as the rating is: the plot gets wider and stays true."""
    page = look(lambda page: play(page, "predict?*", {**ANSWER, "heads": [0.0, 3.0, 10.0]}))
    predict(page)
    assert places(heads(page).locator("circle"), "cx", 3) == [0, 30, 100]
    assert places(heads(page).locator("tbody tr").first.locator(".grid"), "x1", 5) == [10, 20, 30, 40, 50]


@pytest.mark.parametrize(
    ("share", "said", "short"),
    [
        (0.0, "The heads disagree less than on any in-distribution pair.", "0\u202f%"),
        (0.0042, "The heads disagree more than on 0.4\u202f% of in-distribution pairs.", "0.4\u202f%"),
        (0.29, "The heads disagree more than on 29\u202f% of in-distribution pairs.", "29\u202f%"),
        (0.9899, "The heads disagree more than on 98\u202f% of in-distribution pairs.", "98\u202f%"),
        (0.99999, "The heads disagree more than on 99.9\u202f% of in-distribution pairs.", "99.9\u202f%"),
        (1.0, "The heads disagree more than on any in-distribution pair.", "100\u202f%"),
    ],
)
def test_shares(look: Look, share: float, said: str, short: str) -> None:
    """A quantile is rounded down, shown finer near its ends, and never called all or none unless it is."""
    page = look(lambda page: play(page, "predict?*", {**ANSWER, "ood_score": share}))
    predict(page)
    expect(page.get_by_text(said, exact=True)).to_be_visible()
    expect(page.get_by_role("table", name="Disagreement").get_by_role("cell").last).to_have_text(short)


def test_new_item(look: Look, toy: Toy) -> None:
    """A new movie is described in the schema's words, sent by its attributes, and called new."""
    page = look()
    fill(page, "138", "")
    movie = page.get_by_role("group", name="movie")
    movie.get_by_label("new").check()
    expect(movie.get_by_label("id")).to_be_hidden()
    assert movie.get_by_role("textbox").count() == 3
    movie.get_by_label("title").fill("A new film ")
    movie.get_by_label("genres, with commas between").fill("War, Drama")
    movie.get_by_label("year").fill("1999.5")
    with page.expect_request("**/predict") as asked:
        page.get_by_role("button", name="Predict").click()
    film = {"title": "A new film", "genres": ["War", "Drama"], "year": 1999.5}
    assert asked.value.post_data_json == {"pairs": [{"user": 138, "movie": film}]}
    rating = toy.rating(138, {**film, "genres": ("War", "Drama")})
    expect(page.locator(".rating")).to_have_text(f"{rating:.2f}user 138 and new movie, on a scale of 1 to 5")
    expect(page.get_by_text("movie is new the model was not fitted on it")).to_be_visible()


def test_known_item_without_training(look: Look) -> None:
    """A movie of the catalogue that the model was not fitted on is called new as well, and a fitted one is not."""
    page = look()
    predict(page, movie="1001")
    expect(page.get_by_text("movie is new")).to_be_visible()
    predict(page)
    expect(page.locator(".rating")).to_contain_text("movie 357")
    expect(page.get_by_text("is new")).to_have_count(0)


def test_missing_row(look: Look) -> None:
    """A degraded answer says which side is not itself."""
    page = look(lambda page: play(page, "predict?*", {**ANSWER, "degraded": ["user"]}))
    predict(page)
    expect(page.get_by_text("user is missing its vector cannot be fetched")).to_be_visible()


def test_unknown_id(look: Look, server: Process) -> None:
    """An unknown id shows what the server says, and nothing of the answer before; the next answer clears it."""
    page = look()
    predict(page)
    expect(page.locator(".rating")).to_be_visible()
    predict(page, movie="424242")
    detail = server.http.get("/predict?user=138&movie=424242").json()["detail"]
    alert = page.get_by_role("alert").filter(has_text="424242")
    expect(alert).to_have_text(detail)
    expect(page.locator(".rating")).to_have_count(0)
    expect(heads(page)).to_have_count(0)
    predict(page)
    expect(page.locator(".rating")).to_be_visible()
    expect(page.locator("#predict-problem")).to_be_empty()


def test_several_complaints(look: Look) -> None:
    """When several things are wrong, each is named."""
    page = look()
    predict(page, user="a", movie="b")
    integer = "should be an integer of at most 64 bits"
    expect(page.locator("#predict-problem")).to_have_text(f"user: {integer}; movie: {integer}")


@pytest.mark.parametrize(
    ("label", "text", "said"),
    [
        ("year", "soon", "should be a finite number"),
        ("genres", ",", "at least 1 character"),
        ("title", " ", "at least"),
    ],
)
def test_wrong_attributes(look: Look, label: str, text: str, said: str) -> None:
    """What is wrong with an attribute is said by the server, not guessed or dropped by the page."""
    page = look()
    page.get_by_role("group", name="movie").get_by_label("new").check()
    page.get_by_role("group", name="user").get_by_label("id").fill("138")
    page.get_by_role("group", name="movie").get_by_label(label).fill(text)
    page.get_by_role("button", name="Predict").click()
    expect(page.locator("#predict-problem")).to_contain_text(said)


def test_ids_are_required(look: Look) -> None:
    """Nothing is sent while an id is missing."""
    page = look()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if "predict?" in request.url else None)
    expect(page.get_by_role("group", name="user").get_by_label("id")).not_to_have_value("")
    predict(page, user="")
    expect(page.get_by_role("group", name="user").get_by_label("id")).to_be_focused()
    assert asked == []


def test_form_follows_the_schema(look: Look) -> None:
    """Names, id types, the rating scale and whether there are attributes are the model's; text in ids is kept as is."""
    answer = {**ANSWER, "customer": "a&b=ü", "product_line": 5, "rating": 2.0}
    asked: list[Any] = []

    def prepare(page: Page) -> None:
        play(page, "info", info())
        asked.append(play(page, "predict?*", answer))

    page = look(prepare)
    page.get_by_role("group", name="customer").get_by_label("id").fill(" a&b=ü ")
    page.get_by_role("group", name="product line").get_by_label("id").fill("5")
    expect(page.get_by_role("radio")).to_have_count(0)
    page.get_by_role("button", name="Predict").click()
    expect(page.locator(".rating")).to_have_text("2.00customer a&b=ü and product line 5, on a scale of 0.5 to 3.5")
    assert asked[0][0].url.endswith("/predict?customer=a%26b%3D%C3%BC&product_line=5")
    expect(page.locator("#recommend-name")).to_have_text("customer")


def test_large_ids(look: Look) -> None:
    """An id of 64 bits reaches the server digit by digit, in a query and in a body; text ids stay text."""
    page = look(lambda page: play(page, "predict", [{**ANSWER, "user": 9223372036854775807}]))
    with page.expect_request("**/predict?*") as asked:
        predict(page, user="-9223372036854775807")
    assert asked.value.url.endswith("?user=-9223372036854775807&movie=357")
    page.get_by_role("group", name="movie").get_by_label("new").check()
    page.get_by_label("title").fill("x")
    for given, sent in (("9007199254740993", "9007199254740993"), ("-007", "-7"), ("0", "0"), ("1e3", '"1e3"')):
        page.get_by_role("group", name="user").get_by_label("id").fill(given)
        with page.expect_request("**/predict") as asked:
            page.get_by_role("button", name="Predict").click()
        assert asked.value.post_data == f'{{"pairs":[{{"user":{sent},"movie":{{"title":"x"}}}}]}}'
        assert asked.value.headers["content-type"] == "application/json"
        json.loads(asked.value.post_data)


def test_latest_wins(look: Look) -> None:
    """When a second answer overtakes the first, the first never shows."""
    held = Held("predict?*movie=357")
    page = look(held.hold)
    predict(page, movie="357")
    first = held.first()
    expect(page.locator("#predict-plots")).to_have_attribute("aria-busy", "true")
    predict(page, movie="50")
    expect(page.locator(".rating")).to_contain_text("movie 50")
    first.fulfill(json=ANSWER)
    page.evaluate("new Promise(requestAnimationFrame)")
    expect(page.locator(".rating")).to_contain_text("movie 50")
    expect(page.locator("#predict-plots")).not_to_have_attribute("aria-busy", "true")


def test_no_answer(look: Look) -> None:
    """A server that is gone, or something else in its place, is named in plain words."""
    replies: list[Callable[[Route], None]] = [
        lambda route: route.abort("connectionrefused"),
        lambda route: route.fulfill(status=502, body="<h1>Bad Gateway</h1>", content_type="text/html"),
        lambda route: route.fulfill(status=200, body="<h1>Welcome</h1>", content_type="text/html"),
        lambda route: route.fulfill(status=500, body="null"),
        lambda route: route.fulfill(status=429, json=problem(429, "as many predictions wait as may wait")),
    ]
    page = look()
    for reply, said in zip(
        replies,
        [
            "The server does not answer.",
            "The server answered 502 Bad Gateway",
            "What answers here is not the server: it does not send JSON.",
            "The server answered 500 Internal Server Error",
            "as many predictions wait as may wait",
        ],
        strict=True,
    ):
        page.route("**/predict?*", reply)
        predict(page)
        expect(page.locator("#predict-problem")).to_have_text(said)


def test_a_problem_is_text(look: Look) -> None:
    """What a server says is shown, never run."""
    page = look(lambda page: play(page, "predict?*", problem(404, HOSTILE), 404))
    predict(page)
    expect(page.locator("#predict-problem")).to_have_text(HOSTILE)
    assert page.evaluate("window.hacked") is None


def test_suggested_ids(look: Look) -> None:
    """A newcomer finds ids that the catalogue knows; what somebody has written already is left alone."""
    page = look()
    user = page.get_by_role("group", name="user").get_by_label("id")
    expect(user).not_to_have_value("")
    expect(page.locator("#recommend-id")).to_have_value(user.input_value())
    page.get_by_role("button", name="Predict").click()
    expect(page.locator(".rating")).to_be_visible()


def test_suggestions_come_late(look: Look) -> None:
    """A field in which somebody has written, or cleared what was there, or is about to write, is left alone."""
    held = Held("openapi.json")
    page = look(held.hold)
    fill(page, "7", "8")
    page.get_by_role("group", name="movie").get_by_label("id").clear()
    held.first().continue_()
    expect(page.locator("#recommend-id")).not_to_have_value("")
    expect(page.get_by_role("group", name="user").get_by_label("id")).to_have_value("7")
    expect(page.get_by_role("group", name="movie").get_by_label("id")).to_have_value("")
    held = Held("openapi.json")
    page = look(held.hold)
    page.locator("#recommend-id").focus()
    held.first().continue_()
    expect(page.get_by_role("group", name="user").get_by_label("id")).not_to_have_value("")
    expect(page.locator("#recommend-id")).to_have_value("")


def test_without_suggestions(look: Look) -> None:
    """A server that hides its description loses the suggestions and nothing else."""
    page = look(lambda page: play(page, "openapi.json", problem(404, "no"), 404))
    predict(page)
    expect(page.locator(".rating")).to_be_visible()
    expect(page.locator("#verdict")).to_contain_text("Too few predictions so far")
