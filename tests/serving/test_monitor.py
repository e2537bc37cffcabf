"""The shift monitor in the server: what it is shown, what it says, and what outlives a restart."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from levi_serve.monitor.streams import BLOCK
from levi_serve.predictor import Pair

from .conftest import Process, settings, until
from .running import RunningApp
from .toy import USERS, Toy

MANY = USERS | {number: {"age": 20 + number % 40} for number in range(2000, 2400)}
PAIRS = [{"user": number, "movie": 357} for number in range(2000, 2400)]


@pytest.fixture(scope="module", params=["entity", "pair"])
def crowd(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of a toy with many users. None of its traffic is like its reference, which is made up."""
    folder = tmp_path_factory.mktemp("crowd")
    Toy(request.param, users=MANY).write(folder)
    return folder


@pytest.fixture
def app(crowd: Path) -> Iterator[RunningApp]:
    with RunningApp(settings(crowd)) as app:
        yield app


def report(app: RunningApp) -> dict[str, Any]:
    answer = app.get("/monitor")
    assert answer.status_code == 200
    return answer.json()


def metric(app: RunningApp, line: str) -> float:
    """The value of one series."""
    found = re.search(rf"^{re.escape(line)} (\S+)$", app.get("/metrics").text, re.MULTILINE)
    assert found, f"{line} is not there"
    return float(found[1])


def test_before_any_traffic(app: RunningApp) -> None:
    """Golden examples and probes are no traffic; what is not known yet is null."""
    assert app.get("/readyz").status_code == 200
    found = report(app)
    assert (found["status"], found["predictions"], found["since"], found["alarms"]) == ("warming", 0, None, [])
    assert found["evidence"]["value"] is None
    assert {stream["evidence"] for stream in found["streams"]} == {None}
    assert found["unknown"] == {"user": None, "movie": None}
    assert found["budget"] == {"days": 30, "rate": 1000}
    assert [head["mean"] for head in found["heads"]] == [None] * 3
    assert found["estimated_rmse"] is None
    assert found["id_rmse"] == pytest.approx(1, abs=0.1)


def test_what_was_watched(app: RunningApp) -> None:
    """Counts, shares and head ratings are those of the answers."""
    asked = [{"user": 2000, "movie": 357}, {"user": 2001, "movie": 1001}, {"user": {"age": 3}, "movie": {"year": 1}}]
    answers = app.post(asked).json()
    found = report(app)
    assert found["predictions"] == 3
    assert found["unknown"] == pytest.approx({"user": 1 / 3, "movie": 2 / 3})
    heads = np.array([answer["heads"] for answer in answers])
    assert [head["mean"] for head in found["heads"]] == pytest.approx(heads.mean(0), abs=1e-5)
    assert [head["deviation"] for head in found["heads"]] == pytest.approx(heads.std(0), abs=1e-4)
    assert metric(app, "levi_monitor_predictions_total") == 3
    assert metric(app, 'levi_monitor_unknown_total{side="item"}') == 2
    assert metric(app, "levi_monitor_disagreement_count") == 3
    spread = sum(answer["disagreement"] for answer in answers)
    assert metric(app, "levi_monitor_disagreement_sum") == pytest.approx(spread, abs=1e-4)
    assert 0 < metric(app, "levi_monitor_seconds_total") < 1


def test_alarm_from_rise_to_acknowledgement(app: RunningApp) -> None:
    """Traffic unlike the reference raises one alarm, told alike by the report and the metrics; acknowledged, it is no
    longer active, and what lasts raises another one.
    """
    assert metric(app, "levi_monitor_alarm_active") == 0
    app.post(PAIRS)
    found = report(app)
    (alarm,) = found["alarms"]
    assert (found["status"], alarm["id"], alarm["acknowledged"]) == ("alarm", "1", None)
    assert found["since"] == alarm["since"] <= alarm["raised"]
    assert alarm["evidence"] >= found["evidence"]["threshold"]
    assert sum(found["bins"]) == pytest.approx(400 // BLOCK * BLOCK, abs=BLOCK)
    labels = f'kind="{alarm["kind"]}",score="{alarm["score"]}"'
    assert metric(app, f"levi_monitor_alarms_total{{{labels}}}") == 1
    assert metric(app, "levi_monitor_alarm_active") == 1
    assert metric(app, 'levi_monitor_evidence{stream="all"}') >= metric(app, "levi_monitor_evidence_threshold")
    app.post(PAIRS)
    assert len(report(app)["alarms"]) == 1

    seen = app.request("POST", "/monitor/alarms/1/acknowledge")
    assert (seen.status_code, seen.json()["id"]) == (200, "1")
    found = report(app)
    assert (found["status"], found["since"], found["evidence"]["value"]) == ("warming", None, None)
    assert found["alarms"] == [seen.json()]
    assert app.request("POST", "/monitor/alarms/1/acknowledge").json() == seen.json()
    app.post(PAIRS)
    assert [alarm["acknowledged"] is None for alarm in report(app)["alarms"]] == [False, True]


def test_no_answer_waits_for_the_monitor(tmp_path: Path) -> None:
    """What it has to do is done after the replies that made it due, and each thing in a turn of its own."""
    Toy("entity", users=MANY).write(tmp_path)
    with RunningApp(settings(tmp_path)) as app:
        service = app.live.service
        assert service is not None
        monitor, seen = service.monitor, list[str]()
        count, tell = monitor._take_in, monitor._hand_over  # type: ignore[union-attr]

        async def ask() -> None:
            loop, told = asyncio.get_running_loop(), asyncio.Event()

            def take_in() -> None:
                seen.append("counted")
                loop.call_soon(seen.append, "another turn")
                count()

            def hand_over() -> bool:
                seen.append("told")
                told.set()
                return tell()

            monitor._take_in, monitor._hand_over = take_in, hand_over  # type: ignore[union-attr,method-assign]
            pairs = [Pair(pair["user"], pair["movie"]) for pair in PAIRS[:BLOCK]]
            service.engine.put(pairs, math.inf, lambda answers: seen.append("answered"))  # type: ignore[union-attr]
            await asyncio.wait_for(told.wait(), 5)

        app.run(ask())
        assert seen == ["answered", "counted", "another turn", "told"]


@pytest.mark.parametrize("alarm", ["0", "2", "-1", "one", "9" * 30, "١"])
def test_no_such_alarm(app: RunningApp, alarm: str) -> None:
    """An alarm that is not there cannot be acknowledged, whatever its name."""
    app.post(PAIRS)
    answer = app.request("POST", f"/monitor/alarms/{alarm}/acknowledge")
    assert (answer.status_code, answer.json()["type"]) == (404, "urn:levi:problem:unknown-alarm")


def test_recommendations_are_no_traffic(crowd: Path, app: RunningApp) -> None:
    """A pass through the catalogue rates items that nobody asked for; ranking given candidates is like predicting."""
    app.get("/recommend?user=2000&k=2")
    assert report(app)["predictions"] == 0
    app.request("POST", "/rank", json={"user": 2000, "movies": [357, 50]})
    assert report(app)["predictions"] == 2


def test_unknown_ids_are_not_watched(app: RunningApp) -> None:
    """A pair that gets no rating is no evidence."""
    assert app.get("/predict?user=4711&movie=357").status_code == 404
    assert report(app)["predictions"] == 0


def test_off(crowd: Path) -> None:
    """Without a monitor the report says so, and there are no metrics of it."""
    with RunningApp(settings(crowd, monitor=False)) as app:
        app.post(PAIRS)
        assert report(app) == {"status": "off"}
        assert "levi_monitor" not in app.get("/metrics").text
        assert app.request("POST", "/monitor/alarms/1/acknowledge").status_code == 404


def test_a_restart_keeps_alarms_and_evidence(crowd: Path, tmp_path: Path) -> None:
    """An alarm is still active after a restart; one restarted before the alarm goes on where it stopped."""
    kept = settings(crowd, monitor_state=tmp_path / "state")
    with RunningApp(kept) as app:
        app.post(PAIRS[:BLOCK])
        first = report(app)
    with RunningApp(kept) as app:
        assert report(app)["streams"] == first["streams"]
        app.post(PAIRS)
        before = report(app)
        assert before["status"] == "alarm"
    with RunningApp(kept) as app:
        assert report(app) == before


def test_a_state_folder_that_cannot_be(crowd: Path, tmp_path: Path) -> None:
    """A folder whose path leads through a file ends the server at start, with the reason."""
    (tmp_path / "file").write_text("")
    with RunningApp(settings(crowd, monitor_state=tmp_path / "file" / "x")) as app:
        assert "--monitor-state" in str(app.live.fatal)


def test_broken_heads_are_told(tmp_path: Path) -> None:
    """Predictions that are no numbers are as strange as can be: they raise an alarm, and spoil no average."""
    Toy("entity", users=MANY).write(tmp_path)
    with RunningApp(settings(tmp_path)) as app:
        graph = app.live.service.version.predictor._graph  # type: ignore[union-attr]
        run = graph.run
        graph.run = lambda feeds: tuple(output * np.nan for output in run(feeds))  # type: ignore[method-assign]
        for pair in PAIRS[: 6 * BLOCK]:
            assert app.post([pair]).status_code == 500
        found = report(app)
        assert found["status"] == "alarm"
        assert [head["mean"] for head in found["heads"]] == [None] * 3
        assert "NaN" not in app.get("/metrics").text


def test_workers_share_one_state(tmp_path: Path) -> None:
    """Two workers tell the same, and what both have watched; when one dies nothing is lost but what it was filling."""
    Toy("entity", users=MANY).write(tmp_path / "repo")
    process = Process(tmp_path / "log", "--model-repo", str(tmp_path / "repo"), "--workers", "2", "--drain-s", "0")
    try:
        process.ready(2)
        for at in range(0, 400, 20):
            process.http.headers["Connection"] = "close"  # another connection, perhaps another worker
            assert process.http.post("/predict", json={"pairs": PAIRS[at : at + 20]}).status_code == 200
        found = until(lambda: (r := process.http.get("/monitor").json())["status"] == "alarm" and r, process.text)
        reports = [process.http.get("/monitor").json() for _ in range(8)]
        assert {report["alarms"][0]["raised"] for report in reports} == {found["alarms"][0]["raised"]}
        assert len({len(report["alarms"]) for report in reports}) == 1
        assert max(report["predictions"] for report in reports) <= 400
        assert process.http.post("/monitor/alarms/1/acknowledge").status_code == 200
        assert {process.http.get("/monitor").json()["alarms"][0]["acknowledged"] is None for _ in range(8)} == {False}
    finally:
        process.close()
