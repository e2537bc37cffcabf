"""levi_serve.app: loading a version beside a server that already answers."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from levi_serve import app as app_module

from .conftest import settings
from .running import RunningApp
from .toy import Toy


def test_loading(entity_toy_repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the model is being loaded the process is alive, not ready, and says what it does; then it is ready."""
    loaded = threading.Event()
    load = app_module.load
    monkeypatch.setattr(app_module, "load", lambda *given: (loaded.wait(10), load(*given))[1])
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

    def fail(*_: object) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(app_module, "load", fail)
    with RunningApp(settings(entity_toy_repository)) as app:
        assert app.get("/readyz").json()["detail"] == "loading the model failed: no room"


def test_a_version_that_fails_its_proof_leaves_nothing_behind(
    toy_repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine whose golden examples fail is closed: its threads end, and no model is in service."""

    async def fail(*_: object) -> float:
        raise MemoryError("no room")

    made: list[Any] = []
    engine = app_module._engine
    monkeypatch.setattr(app_module, "_engine", lambda *given: made.append(engine(*given)) or made[-1])
    monkeypatch.setattr(app_module, "prove", fail)
    with RunningApp(settings(toy_repository)) as app:
        assert app.get("/readyz").status_code == 503
        assert app.live.service is None
    (closed,) = made
    for thread in closed._threads:
        with pytest.raises(RuntimeError, match="after shutdown"):
            thread.submit(print)


def test_a_version_can_be_pinned(tmp_path: Path) -> None:
    """With a number in the settings that version is served, though a newer one is there."""
    for version in (1, 2):
        Toy("entity").write(tmp_path, version)
    with RunningApp(settings(tmp_path, version=1)) as pinned, RunningApp(settings(tmp_path)) as latest:
        versions = [app.get("/predict?user=138&movie=357").json()["version"] for app in (pinned, latest)]
    assert versions == [1, 2]
