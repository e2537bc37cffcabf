"""levi_serve.engine and the loading in levi_serve.app: what runs beside what."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import httpx
import pytest

from levi_serve import app as app_module

from .conftest import settings
from .running import RunningApp
from .toy import Toy


class Gate:
    """Holds a lane's runs back until it is opened."""

    def __init__(self, app: RunningApp, lane: str) -> None:
        self.opened = threading.Event()
        batcher = getattr(app.live.service.engine, lane)
        run = batcher._run
        batcher._run = lambda items: (self.opened.wait(10), run(items))[1]


def test_new_entities_do_not_hold_up_known_ones(entity_toy_repository: Path) -> None:
    """While the encoder is busy with a new movie, a pair of known ids is answered."""
    with RunningApp(settings(entity_toy_repository)) as app:
        gate = Gate(app, "_encode")

        async def both() -> tuple[bool, int, int]:
            body = {"pairs": [{"user": 138, "movie": {"title": "New"}}]}
            cold = asyncio.ensure_future(app.client.post("/predict", json=body))
            warm = await asyncio.wait_for(app.client.get("/predict?user=138&movie=357"), timeout=5)
            waited = not cold.done()
            gate.opened.set()
            return waited, warm.status_code, (await cold).status_code

        assert app.run(both()) == (True, 200, 200)


def test_the_event_loop_stays_free(toy: Toy, toy_repository: Path) -> None:
    """While the model runs, the process answers probes: neither tokenising nor the model is on the event loop."""
    with RunningApp(settings(toy_repository)) as app:
        gate = Gate(app, "_score")

        async def both() -> tuple[int, int]:
            slow = asyncio.ensure_future(app.client.get("/predict?user=138&movie=357"))
            await asyncio.sleep(0.05)
            alive = await asyncio.wait_for(app.client.get("/livez"), timeout=5)
            gate.opened.set()
            return alive.status_code, (await slow).status_code

        assert app.run(both()) == (200, 200)


def test_a_busy_server_is_ready(entity_toy_repository: Path) -> None:
    """A full queue means 429 for predictions, but /readyz stays 200: taking a busy server out would not help."""
    with RunningApp(settings(entity_toy_repository, max_batch=1, max_pairs=1, max_queue=2)) as app:
        gate = Gate(app, "_score")

        async def crowd() -> tuple[httpx.Response, list[httpx.Response]]:
            tasks = [asyncio.ensure_future(app.client.get("/predict?user=138&movie=357")) for _ in range(4)]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            ready = await app.client.get("/readyz")
            gate.opened.set()
            return ready, list(await asyncio.gather(*tasks))

        ready, answers = app.run(crowd())
        assert ready.status_code == 200
        assert sorted(answer.status_code for answer in answers) == [200, 200, 200, 429]


def test_loading(entity_toy_repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the model is being loaded the process is alive, not ready, and says what it does; then it is ready."""
    loaded = threading.Event()
    load = app_module.load_version
    monkeypatch.setattr(app_module, "load_version", lambda given: (loaded.wait(10), load(given))[1])
    with RunningApp(settings(entity_toy_repository), wait=False) as app:
        assert app.get("/livez").status_code == 200
        for path in ("/readyz", "/predict?user=138&movie=357"):
            assert app.get(path).json()["detail"] == "the model is being loaded"
        assert app.get("/info").json()["status"] == "loading"
        loaded.set()
        app.wait()
        assert app.get("/readyz").status_code == 200


def test_a_bug_while_loading(entity_toy_repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unexpected error while loading leaves the process up and not ready, with the reason."""

    def fail(_: object) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(app_module, "load_version", fail)
    with RunningApp(settings(entity_toy_repository)) as app:
        assert app.get("/readyz").json()["detail"] == "loading the model failed: no room"


def test_a_version_can_be_pinned(tmp_path: Path) -> None:
    """With a number in the settings that version is served, though a newer one is there."""
    for version in (1, 2):
        Toy("entity").write(tmp_path, version)
    with RunningApp(settings(tmp_path, version=1)) as pinned, RunningApp(settings(tmp_path)) as latest:
        versions = [app.get("/predict?user=138&movie=357").json()["version"] for app in (pinned, latest)]
    assert versions == [1, 2]


def test_requests_share_runs(entity_toy_repository: Path) -> None:
    """Requests that arrive during a run are answered by the next one together."""
    with RunningApp(settings(entity_toy_repository)) as app:
        gate = Gate(app, "_score")

        async def crowd() -> None:
            tasks = [asyncio.ensure_future(app.client.get("/predict?user=138&movie=357")) for _ in range(20)]
            await asyncio.sleep(0.2)
            gate.opened.set()
            await asyncio.gather(*tasks)

        app.run(crowd())
        text = app.get("/metrics").text
    assert 'levi_batch_size_count{lane="score"} 2.0' in text
    assert 'levi_batch_size_sum{lane="score"} 20.0' in text
