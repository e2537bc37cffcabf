"""How the page looks and behaves for people with small screens, no mouse, other eyes or other settings."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from tests.programs import package

from .answers import alarm, best, monitor, play, recommendation

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.system
expect = package("playwright.sync_api").expect
Look = Callable[..., "Page"]

LONG = "Donaudampfschifffahrtsgesellschaftskapitänsmützenabzeichen" * 3
OUTSIDE = (
    "[...document.querySelectorAll('body *')].filter((e) => !e.closest('svg')"
    " && (e.getBoundingClientRect().right > innerWidth + 0.5 || e.getBoundingClientRect().left < -0.5))"
    ".map((e) => e.outerHTML.slice(0, 100))"
)
PHONE = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True}


def everything(look: Look, **options: Any) -> Page:
    """The page with all that it can show at once."""

    def prepare(page: Page) -> None:
        alarms = [alarm(1, "2026-05-03T14:09:00Z"), alarm(2)]
        play(page, "monitor", monitor("alarm", since="2026-05-03T14:02:00Z", alarms=alarms, predictions=10**12))
        film = best(1001, 4.5, 0.5, cold_start=["movie"], attributes={"title": LONG, "genres": [LONG]})
        play(page, "recommend?*", recommendation(*[film] * 3))

    page = look(prepare, **options)
    page.get_by_role("group", name="user").get_by_label("id").fill("138")
    page.get_by_role("group", name="movie").get_by_label("id").fill("1001")
    page.get_by_role("button", name="Predict").click()
    page.locator("#recommend-id").fill("138")
    page.get_by_role("button", name="Recommend").click()
    page.get_by_text("Where it comes from").click()
    expect(page.locator(".rating")).to_be_visible()
    expect(page.locator(".best tbody tr")).to_have_count(3)
    expect(page.locator("#alarms li")).to_have_count(2)
    return page


@pytest.mark.parametrize("width", [320, 360, 600, 768, 900, 1280, 2560])
def test_nothing_sticks_out(look: Look, width: int) -> None:
    """From a small phone to a wide screen nothing has to be scrolled sideways, and no box is wider than the page."""
    page = everything(look, viewport={"width": width, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate(OUTSIDE) == []


def test_columns(look: Look) -> None:
    """On a wide screen live traffic stands beside the form; on a phone everything stands below each other."""
    for options, beside in (({"viewport": {"width": 1280, "height": 800}}, True), (PHONE, False)):
        page = everything(look, **options)
        form = page.get_by_role("region", name="Try a prediction").bounding_box()
        traffic = page.get_by_role("region", name="Live traffic").bounding_box()
        assert form
        assert traffic
        assert (traffic["y"] == form["y"]) is beside
        assert (traffic["x"] > form["x"]) is beside


def test_drawings_have_room(look: Look) -> None:
    """On a phone a plot keeps two fifths of the width for its drawing, and its text is as large as elsewhere."""
    page = everything(look, **PHONE)
    boxes = [drawing.bounding_box() for drawing in page.locator(".plot tbody .drawing").all()]
    assert all(box and box["width"] >= 0.4 * 360 for box in boxes)
    sizes = page.evaluate("[...document.querySelectorAll('text, small')].map((e) => getComputedStyle(e).fontSize)")
    assert {*sizes} == {"13px"}


def test_targets_for_fingers(look: Look) -> None:
    """On a touch screen buttons and fields are 44 pixels high; links and titles at least 24."""
    page = everything(look, **PHONE)
    for target in page.locator("button:visible, input:visible, a:visible, summary:visible").all():
        box = target.bounding_box()
        assert box
        large = target.evaluate("e => e.matches('button:not(.plain), input:not([type=radio], [type=checkbox])')")
        small = target.evaluate("e => e.matches('input[type=radio], input[type=checkbox]')")
        if small:
            box = target.locator("xpath=..").bounding_box()  # its label is part of it
            assert box
        assert box["height"] >= (44 if large else 24), target.evaluate("e => e.outerHTML")


def luminance(colour: str) -> float:
    """WCAG's relative luminance of `rgb(…)`."""
    parts = [int(part) / 255 for part in re.findall("[0-9]+", colour)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """WCAG's contrast ratio."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(look: Look, scheme: str) -> None:
    """All text has a contrast of 4.5 to what is behind it, and edges of fields and drawn marks one of 3, in both
    schemes.
    """
    page = everything(look, color_scheme=scheme)
    expect(page.locator("body")).to_have_css(
        "background-color", "rgb(251, 250, 247)" if scheme == "light" else "rgb(22, 21, 19)"
    )
    pairs = page.evaluate(
        """() => {
          const behind = (e) => {
            for (; e; e = e.parentElement) {
              const colour = getComputedStyle(e).backgroundColor;
              if (colour !== "rgba(0, 0, 0, 0)") return colour;
            }
          };
          const own = (e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
          const texts = [...document.querySelectorAll("body *, input")].filter((e) => own(e) || e.matches("input"));
          return texts.map((e) => {
            const style = getComputedStyle(e);
            return [e.closest("svg") ? style.fill : style.color, behind(e), e.outerHTML.slice(0, 80)];
          });
        }"""
    )
    assert len(pairs) > 80
    assert [pair for pair in pairs if contrast(pair[0], pair[1]) < 4.5] == []
    marks = page.evaluate(
        """() => {
          const paper = getComputedStyle(document.body).backgroundColor;
          const of = (selector, name) => [getComputedStyle(document.querySelector(selector))[name], paper, selector];
          return [of("input", "borderTopColor"), of(".dot", "fill"), of(".filled", "fill"), of(".limit", "stroke"),
            of(".mean", "stroke"), of(".reference", "stroke"), of("button", "backgroundColor")];
        }"""
    )
    assert [mark for mark in marks if contrast(mark[0], mark[1]) < 3] == []


def test_alarm_stands_out(look: Look) -> None:
    """An alarm fills its band with colour; a calm verdict does not."""
    page = everything(look)
    expect(page.locator("#verdict")).to_have_css("background-color", "rgb(184, 55, 28)")
    page = look(lambda page: play(page, "monitor", monitor()))
    expect(page.locator("#verdict")).to_have_attribute("data-kind", "ok")
    expect(page.locator("#verdict")).to_have_css("background-color", "rgba(0, 0, 0, 0)")


def test_by_keyboard_alone(look: Look) -> None:
    """Tab reaches everything in reading order and shows where it is; a prediction needs no mouse."""
    page = everything(look)
    page.get_by_role("heading", level=1).click()
    seen = []
    for _ in range(40):
        page.keyboard.press("Tab")
        at = page.evaluate(
            "(() => { const e = document.activeElement; const s = getComputedStyle(e);"
            " return [e.name || e.id || e.textContent.trim(), s.outlineStyle, parseFloat(s.outlineWidth)]; })()"
        )
        if at[0] == page.evaluate("document.body.textContent.trim()"):
            break
        seen.append(at)
    names = [name for name, _, _ in seen]
    assert names[:5] == ["user-is", "user", "movie-is", "movie", "predict-button"]
    assert names[5:9] == ["recommend-id", "recommend-count", "recommend-unrated", "Recommend"]
    assert names[9:12] == [LONG] * 3
    assert names[12:] == ["Acknowledge", "Where it comes from", "API", "Metrics", "Model facts"]
    assert all(style == "solid" and width >= 2 for _, style, width in seen)


def test_new_item_by_keyboard(look: Look) -> None:
    """Choosing `new` by arrow key leads Tab into its attributes."""
    page = look()
    user = page.get_by_role("group", name="user").get_by_label("id")
    expect(user).not_to_have_value("")
    user.focus()
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Tab")
    expect(page.get_by_label("title")).to_be_focused()
    page.keyboard.type("A film")
    page.keyboard.press("Enter")
    expect(page.locator(".rating")).to_contain_text("new movie")


def test_names_for_screen_readers(look: Look) -> None:
    """Every field, button, drawing, group, table and region has a name, headings do not skip a level."""
    page = everything(look)
    page.get_by_role("group", name="movie").get_by_label("new").check()
    assert page.evaluate("[...document.querySelectorAll('input')].filter((e) => !e.labels.length).length") == 0
    snapshot = page.locator("body").aria_snapshot()
    assert not re.search(r"- (textbox|button|img|radio|checkbox|link|region|table)(:|$| \[)", snapshot, re.MULTILINE)
    levels = page.evaluate("[...document.querySelectorAll('h1, h2, h3')].map((e) => Number(e.tagName[1]))")
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map((e) => e.id)")
    assert len(ids) == len({*ids})
    expect(page.locator("html")).to_have_attribute("lang", "en")


def test_results_are_read_out(look: Look) -> None:
    """Answers appear in polite live regions, problems in alerts."""
    page = look()
    for name in ("verdict", "predict-answer", "recommend-said", "token-said"):
        expect(page.locator(f"#{name}")).to_have_attribute("role", "status")
    for name in ("predict-problem", "recommend-problem", "alarms-problem"):
        expect(page.locator(f"#{name}")).to_have_attribute("role", "alert")


@pytest.mark.parametrize("motion", ["reduce", "no-preference"])
def test_nothing_moves(look: Look, motion: str) -> None:
    """There is no animation, transition or smooth scrolling that anybody would have to turn off."""
    page = everything(look, reduced_motion=motion)
    moving = page.evaluate(
        "[...document.querySelectorAll('*')].filter((e) => { const s = getComputedStyle(e);"
        " return s.transitionDuration !== '0s' || s.animationName !== 'none' || s.scrollBehavior !== 'auto'; }).length"
    )
    assert moving == 0
    assert page.evaluate("document.getAnimations().length") == 0


def test_large_text(look: Look) -> None:
    """Text of twice the size still fits a window of 640 pixels."""
    page = everything(look, viewport={"width": 640, "height": 740})
    page.evaluate("document.documentElement.style.fontSize = '200%'")
    assert page.evaluate(OUTSIDE) == []


def test_foreign_scripts_do_not_run(browser: Any, server: Any) -> None:
    """Should markup get into the page after all, the policy keeps scripts from running and data from leaving."""
    page = browser.new_page()
    page.goto(server.url)
    elsewhere = socket.create_server(("127.0.0.1", 0))
    elsewhere.setblocking(False)
    page.evaluate(
        """(elsewhere) => {
          const script = document.createElement("script");
          script.textContent = "window.hacked = true";
          document.head.append(script);
          const image = document.createElement("div");
          image.innerHTML = `<img src=x onerror='window.hacked = true'><img src='${elsewhere}/leak'>`;
          document.body.append(image);
          fetch(`${elsewhere}/leak`, { mode: "no-cors" }).catch(() => (window.kept = true));
        }""",
        f"http://127.0.0.1:{elsewhere.getsockname()[1]}",
    )
    expect(page.locator("img")).to_have_count(2)
    for _ in range(100):
        if page.evaluate("window.kept"):
            break
        page.wait_for_timeout(20)
    assert page.evaluate("[window.kept, window.hacked]") == [True, None]
    with elsewhere, pytest.raises(BlockingIOError):
        elsewhere.accept()
    page.close()


def test_without_scripts(look: Look) -> None:
    """A browser that runs no scripts is told so, and where the same answers are."""
    page = look(java_script_enabled=False)
    expect(page.locator("noscript .problem")).to_be_visible()
    expect(page.get_by_role("button")).to_have_count(0)


def test_below_a_path(look: Look, browser: Any, server: Any) -> None:
    """Behind a proxy that puts the server below a path, the page asks below that path too."""
    page = browser.new_page()
    asked: list[str] = []

    def forward(route: Any) -> None:
        asked.append(route.request.url)
        route.fulfill(response=route.fetch(url=route.request.url.replace("http://proxy/some/path", server.url)))

    page.route("http://proxy/some/path/**", forward)
    page.goto("http://proxy/some/path/")
    expect(page.locator("#serving")).to_have_text("levi/1 is ready")
    assert all(url.startswith("http://proxy/some/path/") for url in asked)
    page.unroute_all(behavior="ignoreErrors")
    page.close()
