"""What the page says of the model, and of a server that has none."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from tests.programs import package
from tests.serving.conftest import Process

from .answers import HOSTILE, info, monitor, play

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.system
expect = package("playwright.sync_api").expect
Look = Callable[..., "Page"]


def test_facts(look: Look, server: Process) -> None:
    """Version, views, heads and metrics are those of /info; where it comes from is folded away."""
    page = look()
    facts = page.locator("#model")
    expect(page.locator("#serving")).to_have_text("levi/1 is ready")
    expect(facts.locator("dl").first.locator("dd").nth(0)).to_have_text("levi/1")
    expect(facts).to_contain_text("entity: one text per user and per item")
    expect(facts).to_contain_text("3, one per layer of the backbone")
    expect(facts).to_contain_text("in-distribution quantile of the spread")
    expect(facts).to_contain_text("11 recorded predictions, off by")
    expect(facts.locator("dl").nth(1)).to_have_text("id rmse0.9000")
    expect(facts.get_by_text("toy")).to_be_hidden()
    facts.get_by_text("Where it comes from").click()
    expect(facts.get_by_text("toy")).to_be_visible()
    expect(facts.get_by_text("licence of data")).to_be_visible()


@pytest.mark.parametrize(
    ("value", "said"),
    [(0.96198, "0.9620"), (-0.25, "−0.2500"), (9.5e-7, "9.5e-7"), (12, "12"), (0.001, "0.0010"), (0.00099, "9.9e-4")],
)
def test_numbers(look: Look, value: float, said: str) -> None:
    """Metrics have four digits after the point; small ones are powers of ten."""
    page = look(lambda page: play(page, "info", info(metrics={"id_rmse": value})))
    expect(page.locator("#model dl").nth(1)).to_have_text(f"id rmse{said}")


def test_times(look: Look) -> None:
    """When it was fitted and exported is told as a time."""
    run = {"seed": 0, "fitted": "2026-05-03T14:01:00+00:00", "exported": "2026-05-04T09:30:00+00:00"}
    page = look(lambda page: play(page, "info", info(run=run)))
    page.get_by_text("Where it comes from").click()
    expect(page.locator("#model details dl")).to_have_text("seed0fitted3 May, 14:01exported4 May, 09:30")


def test_facts_are_text(look: Look) -> None:
    """Nothing in a manifest is read as HTML."""
    page = look(lambda page: play(page, "info", info(metrics={HOSTILE: 1.0}, run={HOSTILE: HOSTILE}, score=HOSTILE)))
    expect(page.locator("#model")).to_contain_text(HOSTILE)
    assert page.locator("img, main script").count() == 0
    assert page.evaluate("window.hacked") is None


def test_no_model(look: Look) -> None:
    """A server without a model says why; there is nothing to ask of it until it has one."""
    loading = {"name": "levi", "status": "loading", "reason": "the model is being loaded", "model": None}

    def prepare(page: Page) -> None:
        page.clock.install()
        play(page, "info", loading)
        play(page, "monitor", monitor("warming"))

    page = look(prepare)
    expect(page.locator("#serving")).to_have_text("levi is loading: the model is being loaded")
    expect(page.get_by_role("button")).to_have_count(0)
    expect(page.locator("#verdict")).to_have_attribute("data-kind", "warming")
    expect(page.locator("#monitor-heads")).to_be_empty()
    page.unroute("**/info")
    page.clock.run_for(5_000)
    expect(page.locator("#serving")).to_have_text("levi/1 is ready")
    expect(page.get_by_role("button", name="Predict")).to_be_visible()
    expect(page.get_by_role("group", name="user").get_by_label("id")).not_to_have_value("")


def test_new_version(look: Look) -> None:
    """When another version comes into service the page shows it, and keeps what was written if it is still asked."""

    def prepare(page: Page) -> None:
        page.clock.install()
        play(page, "info", info(version=7))

    page = look(prepare)
    page.get_by_role("group", name="customer").get_by_label("id").fill("x1")
    play(page, "info", info(version=8, rating_max=9.0))
    page.clock.run_for(5_000)
    expect(page.locator("#serving")).to_have_text("shop/8 is ready")
    expect(page.locator("#model")).to_contain_text("0.5 to 9")
    expect(page.get_by_role("group", name="customer").get_by_label("id")).to_have_value("x1")
    play(page, "info", info(version=9, entities=[{"name": "reader"}, {"name": "book"}]))
    page.clock.run_for(5_000)
    expect(page.get_by_role("group", name="reader").get_by_label("id")).to_have_value("")
    expect(page.get_by_role("group", name="customer")).to_have_count(0)


def test_links(look: Look, server: Process) -> None:
    """The links lead to what this server has."""
    page = look()
    links = page.get_by_role("navigation").get_by_role("link")
    expect(links).to_have_text(["API", "Metrics", "Model facts"])
    for link in links.all():
        assert server.http.get(link.evaluate("link => link.href")).status_code == 200
