"""The page beside the real monitor: what live traffic makes of it, from the first prediction to a seen alarm."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import TYPE_CHECKING

import pytest

from tests.deploy.world import MANY, World, feed_back, usual
from tests.programs import package
from tests.serving.conftest import Process

from .answers import places

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.system
expect = package("playwright.sync_api").expect
Look = Callable[..., "Page"]


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A server whose monitor has seen nothing but the errors of some predictions."""
    folder = tmp_path_factory.mktemp("watching")
    World().write(folder)
    flags = ["--model-repo", str(folder), "--drain-s", "0", "--monitor-state", str(folder / "state")]
    flags += ["--monitor-rate", "1e6"]  # all of what comes at once is to be watched
    process = Process(folder / "server.log", *flags)
    process.settled()
    feed_back(folder, folder / "state", squared=0.25)
    yield process
    process.close()


def test_from_first_prediction_to_acknowledged_alarm(server: Process, look: Look) -> None:
    """Too little traffic, traffic as in distribution, an alarm, and the alarm after somebody has seen it: the page says
    each, and the server has it in its metrics.
    """
    page = look()
    verdict = page.locator("#verdict")
    expect(verdict).to_have_text("Too few predictions so far to judge live traffic.")
    expect(page.locator("#alarms")).to_contain_text("None so far.")
    expect(page.locator("#monitor-facts")).to_contain_text("not known yet")

    for pairs in islice(usual(1), 60):
        assert server.http.post("/predict", json={"pairs": pairs}).status_code == 200
    page.reload()
    expect(verdict).to_have_text("Live traffic looks like the data this model was fitted on.")
    expect(page.locator("#monitor-said")).to_contain_text(f"{60 * 64:,} predictions watched")
    expect(page.locator("#monitor-facts")).not_to_contain_text("not known yet")
    expect(page.locator("#monitor-facts")).to_contain_text("RMSE of predictions with feedback0.500")
    assert len(places(page.locator("#monitor-heads .dot"), "cx", 3)) == 3

    for _ in range(10):
        pairs = [{"user": user, "movie": 1001} for user in MANY]
        assert server.http.post("/predict", json={"pairs": pairs}).status_code == 200
    page.reload()
    expect(verdict).to_have_attribute("data-kind", "alarm")
    expect(verdict).to_contain_text("Shift alarm since ")
    expect(page.locator("#monitor-facts")).to_contain_text("predictions with unknown movie")
    assert "levi_monitor_alarm_active 1.0" in server.http.get("/metrics").text

    button = page.get_by_role("button", name="Acknowledge")
    button.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#alarms")).to_contain_text("acknowledged")
    expect(button).to_have_count(0)
    expect(verdict).to_have_attribute("data-kind", "ok")
    assert "levi_monitor_alarm_active 0.0" in server.http.get("/metrics").text
