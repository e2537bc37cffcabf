"""levi_serve.trial: who is answered by the canary, and what is noted of the difference between both versions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from levi_serve import trial as trial_module
from levi_serve.trial import fraction

from .conftest import Process, settings, until
from .running import RunningApp
from .toy import USERS, Toy

OLD, NEW = Toy("entity"), Toy("entity", users=dict(reversed(USERS.items())))
"""A user's rating depends on its place among the users."""
BOTH = {"version": "1,2", "stable": 1, "canary": 2}
PEOPLE = [{"age": age} for age in range(20, 80)]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two versions that differ."""
    folder = tmp_path_factory.mktemp("two")
    OLD.write(folder, 1)
    NEW.write(folder, 2)
    return folder


@pytest.fixture
def run(repository: Path, tmp_path: Path) -> Iterator[Callable[..., RunningApp]]:
    """Starts a server with both versions."""
    apps: list[RunningApp] = []

    def start(**shares: float) -> RunningApp:
        chosen = settings(repository, watch_s=3600, feedback=tmp_path / "log", **BOTH, **shares)
        apps.append(RunningApp(chosen))
        app = apps[-1].__enter__()
        until(lambda: app.live.labels == {"stable": 1, "canary": 2})
        return app

    yield start
    for app in apps:
        app.__exit__()


def metric(text: str, name: str) -> float:
    (line,) = (line for line in text.splitlines() if line.startswith(f"{name} "))
    return float(line.split()[-1])


def noted(app: RunningApp, name: str) -> float:
    return metric(app.get("/metrics").text, name)


def test_fractions() -> None:
    """Even, and the same for ever: a server of tomorrow must not move a user."""
    assert fraction(138) == pytest.approx(0.121045480138676, abs=1e-12)
    assert fraction("138") == pytest.approx(0.16646797714287231, abs=1e-12)
    assert fraction({"a": 1, "b": (2,)}) == fraction({"b": [2], "a": 1})
    counts, _ = np.histogram([fraction(user) for user in range(10_000)], 10, (0, 1))
    assert abs(counts - 1000).max() < 150


def test_the_share(run: Callable[..., RunningApp]) -> None:
    """Each user has one version, whatever is asked, and those of a smaller share are among those of a larger one."""
    app = run(canary_share=0.3)
    expected = [2 if fraction(user) < 0.3 else 1 for user in PEOPLE]
    assert 5 < expected.count(2) < 40
    for user, version in zip(PEOPLE, expected, strict=True):
        (answer,) = app.post([{"user": user, "movie": 357}]).json()
        assert answer["version"] == version
    user, version = next((user, version) for user, version in zip(PEOPLE, expected, strict=True) if version == 2)
    assert app.request("POST", "/recommend", json={"user": user}).json()["version"] == version
    assert app.request("POST", "/rank", json={"user": user, "movies": [357, 50]}).json()["version"] == version
    many = app.post([{"user": user, "movie": 357}, {"user": PEOPLE[expected.index(1)], "movie": 357}]).json()
    assert [answer["version"] for answer in many] == [version, version]
    assert noted(app, "levi_versions_rating_difference_count") == 0


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_shadows(run: Callable[..., RunningApp], share: float) -> None:
    """Both predict, one answers; the difference is noted, and the monitor of the other one is shown nothing."""
    app = run(canary_share=share, shadow_share=1.0)
    shown: list[Any] = []
    watched = app.live.loaded[1 if share else 2].monitor
    watched.observe = lambda *said: shown.append(said)
    answer = app.get("/predict?user=138&movie=357").json()
    assert answer["version"] == (2 if share else 1)
    assert answer["rating"] == pytest.approx((NEW if share else OLD).rating(138, 357), abs=1e-5)
    app.post([{"user": 7, "movie": 357}, {"user": {"age": 44}, "movie": 50}])
    until(lambda: noted(app, "levi_versions_rating_difference_count") == 3)
    expected = sum(abs(OLD.rating(user, 357) - NEW.rating(user, 357)) for user in (138, 7))
    assert noted(app, "levi_versions_rating_difference_sum") == pytest.approx(expected, abs=1e-5)
    assert noted(app, 'levi_versions_comparisons_total{outcome="compared"}') == 2
    assert not shown


def test_errors(run: Callable[..., RunningApp]) -> None:
    """Both versions' squared errors on the ratings that come back."""
    app = run()
    for user, movie, rating in ((138, 357, 1.0), (7, 50, 5.0), (99, 50, 5.0)):
        sent = {"user": user, "movie": movie, "rating": rating}
        assert app.request("POST", "/feedback", json=sent).status_code == 200
    until(lambda: noted(app, 'levi_versions_comparisons_total{outcome="compared"}') == 2)
    for label, toy in (("stable", OLD), ("canary", NEW)):
        expected = (toy.rating(138, 357) - 1) ** 2 + (toy.rating(7, 50) - 5) ** 2
        assert noted(app, f'levi_versions_squared_error_sum{{label="{label}"}}') == pytest.approx(expected, abs=1e-4)


def test_true_errors(repository: Path, tmp_path: Path) -> None:
    """With one version, true ratings that come back stand beside the monitor's estimate, and are no traffic."""
    with RunningApp(settings(repository, version="1", feedback=tmp_path / "log")) as app:
        assert app.get("/monitor").json()["true_rmse"] is None
        for movie, rating in ((357, 1.0), (50, 5.0)):
            sent = {"user": 7, "movie": movie, "rating": rating}
            assert app.request("POST", "/feedback", json=sent).status_code == 200
        until(lambda: noted(app, 'levi_versions_comparisons_total{outcome="compared"}') == 2)
        expected = (OLD.rating(7, 357) - 1) ** 2 + (OLD.rating(7, 50) - 5) ** 2
        report = app.get("/monitor").json()
        assert report["true_rmse"] == pytest.approx((expected / 2) ** 0.5, abs=1e-4)
        assert report["predictions"] == 0


def test_too_much_is_skipped(run: Callable[..., RunningApp], monkeypatch: pytest.MonkeyPatch) -> None:
    """What is only to be compared is given up; the answer is not."""
    monkeypatch.setattr(trial_module, "_MOST", 0)
    app = run(shadow_share=1.0)
    assert app.get("/predict?user=138&movie=357").status_code == 200
    assert noted(app, 'levi_versions_comparisons_total{outcome="skipped"}') == 1


def test_in_the_lane(repository: Path, tmp_path: Path) -> None:
    """The express lane asks the canary as well."""
    flags = [f"--{name}={value}" for name, value in {**BOTH, "canary-share": 0.5}.items()]
    server = Process(tmp_path / "log", "--model-repo", str(repository), *flags)
    try:
        server.ready(2)
        for user in (138, 7, 9):
            answer: Any = server.http.get(f"/predict?user={user}&movie=357").json()
            toy, version = (NEW, 2) if fraction(user) < 0.5 else (OLD, 1)
            assert (answer["version"], answer["rating"]) == (version, pytest.approx(toy.rating(user, 357), abs=1e-5))
            listed = server.http.post("/predict", json={"pairs": [{"user": user, "movie": 357}]})
            assert listed.json() == [answer]
    finally:
        server.close()
