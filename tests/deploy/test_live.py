"""A real Prometheus over real servers: every panel has data, every alert fires in its scenario and in no other.

The rules are those of deploy/prometheus, with all windows and waits sixty times shorter.
"""

from __future__ import annotations

import functools
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from itertools import count
from pathlib import Path
from typing import Any

import psutil
import pytest

from levi_serve.bundle.feedback import SUFFIX
from tests.serving.conftest import ROOT, Process
from tests.serving.redis_server import RedisServer, free_port, until

from .rules import alerts, queries
from .world import MANY, Prometheus, World, feed_back, slow_down, usual

pytestmark = pytest.mark.system

PATIENCE_S = 120
PATIENT = ("--timeout-ms", "9000")
"""A machine that is busy with other things is no failure of the server's."""
EXPECTED = {
    "": {"LeviAbsent"},
    "levi-down": {"LeviDown"},
    "levi-failed": {"LeviNotReady", "LeviVersionUnusable", "LeviErrorsFast", "LeviErrorsSlow"},
    "levi-workers": {"LeviWorkersMissing", "LeviRestarts"},
    "levi-slow": {"LeviSheds", "LeviSlow", "LeviQueueLong", "LeviQueueSlow"},
    "levi-rows": {"LeviRedisAway", "LeviDegraded", "LeviCorruptRows", "LeviMonitorSilent", "LeviEntitiesOld"},
    "levi-shift": {"LeviShift", "LeviManyUnknown", "LeviEstimatedErrorUp", "LeviErrorUp", "LeviFeedbackOld"},
    "levi-head": {"LeviHeadBroken"},
    "levi-quiet": {"LeviModelOutput", "LeviNoTraffic"},
}
MAY = {
    "levi-shift": {"LeviHeadBroken"},  # the toy's heads read different things of a user
    "levi-workers": {"LeviDown"},  # a scrape may meet the worker that is killed
    "levi-slow": {"LeviErrorsFast", "LeviErrorsSlow"},  # a 504 is an error
    "levi-quiet": {"LeviErrorsFast", "LeviErrorsSlow"},  # so is a rating that is no number
}


class Traffic:
    """Does something again and again, in a thread, until it is to end; what fails in it is told at the end."""

    def __init__(self, work: Callable[[], None], pause_s: float = 0.1) -> None:
        self._work, self._pause_s = work, pause_s
        self._over = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def __enter__(self) -> Traffic:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            while not self._over.wait(self._pause_s):
                self._work()
        except Exception as error:  # noqa: BLE001 - raised when the thread is joined
            self._error = error


class Stage:
    """Everything that a scenario starts; it ends with the test."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = ExitStack()
        self.targets: dict[str, str] = {}
        self._began = math.inf

    @property
    def watched_s(self) -> float:
        """For how long Prometheus has been watching."""
        return time.monotonic() - self._began

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *told: Any) -> None:
        self._stack.__exit__(*told)

    def repository(self, job: str, world: World | None = None) -> Path:
        """A model of a job's own."""
        folder = self._folder / job / "models"
        folder.mkdir(parents=True)
        (world or World()).write(folder)
        return folder

    def server(self, job: str, repository: Path, *flags: str) -> Process:
        """A server that Prometheus will scrape under this job."""
        log = self._folder / job / "server.log"
        process = Process(log, "--model-repo", str(repository), "--drain-s", "0", *PATIENT, *flags)
        self._stack.callback(process.close)
        self.targets[job] = process.url.removeprefix("http://")
        return process

    def redis(self, job: str) -> RedisServer:
        folder = self._folder / job / "redis"
        folder.mkdir(parents=True)
        server = RedisServer(folder)
        self._stack.callback(server.kill)
        return server

    def traffic(self, work: Callable[[], None], pause_s: float = 0.1) -> None:
        """Do this again and again, from when Prometheus watches."""

        def watched() -> None:
            if self.watched_s > 0:
                work()

        self._stack.enter_context(Traffic(watched, pause_s))

    def prometheus(self, name: str, targets: dict[str, str]) -> Prometheus:
        watching = Prometheus(self._folder / name, targets)
        self._stack.callback(watching.close)
        self._began = min(self._began, time.monotonic())
        return watching


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with Stage(tmp_path_factory.mktemp("stage")) as stage:
        yield stage


@pytest.fixture(scope="module")
def watching(stage: Stage) -> Prometheus:
    """All scenarios at once, under way, and the Prometheus that watches them."""
    for play in (workers, control, failed, slow, rows, shift, head, quiet):
        play(stage)
    stage.targets["levi-down"] = f"127.0.0.1:{free_port()}"
    return stage.prometheus("prometheus", stage.targets)


def control(stage: Stage) -> None:
    """Mixed traffic as it should be: known pairs, some new entities, lists, mistakes of clients; true ratings too."""
    repository, state = stage.repository("levi"), stage._folder / "levi/state"
    redis = stage.redis("levi")
    server = stage.server("levi", repository, "--redis", redis.url, "--monitor-state", str(state))
    server.settled()
    feed_back(repository, state, squared=0.1)
    pairs, number = usual(1), count()

    def work() -> None:
        i = next(number)
        ask(server, next(pairs))
        assert server.http.get("/predict?user=1000&movie=357").status_code == 200
        assert server.http.get("/predict?user=4711&movie=357").status_code == 404
        assert server.http.get("/predict?user=x&movie=357").status_code == 422
        assert server.http.get("/recommend?user=1000&k=2").status_code == 200
        new = [{"title": "New " * (1 + i % 5)}, {"title": f"Newer {i}"}]
        if i % 4 == 0:
            ask(server, [{"user": 1000 + i % 400, "movie": movie} for movie in new])

    stage.traffic(work)


def failed(stage: Stage) -> None:
    """A version that cannot be used, and clients that ask all the same."""
    repository = stage.repository("levi-failed")
    (repository / "levi/1/model.onnx").write_bytes(b"nothing")
    server = stage.server("levi-failed", repository)
    server.settled()
    stage.traffic(lambda: refused(server, "/predict?user=138&movie=357", 503))


def workers(stage: Stage) -> None:
    """Workers die and come back, until they cannot load their model any more."""
    repository = stage.repository("levi-workers")
    server = stage.server("levi-workers", repository, "--workers", "4")
    server.ready(4)
    alive = [child.pid for child in psutil.Process(server.popen.pid).children()]

    def work() -> None:
        if stage.watched_s < 4 or not alive:
            return
        if len(alive) == 4:
            for pid in alive[1:]:
                os.kill(pid, signal.SIGKILL)
            del alive[1:]
            return
        server.ready(7)
        (repository / "levi/1/model.onnx").write_bytes(b"nothing")
        time.sleep(2)  # until Prometheus has seen that all were there
        os.kill(alive.pop(), signal.SIGKILL)

    stage.traffic(work)


def slow(stage: Stage) -> None:
    """A backbone that is too slow for the new entities that come."""
    repository = stage.repository("levi-slow")
    slow_down(repository)
    server = stage.server(
        "levi-slow", repository, "--encode-batch", "1", "--max-pairs", "4", "--max-queue", "20", "--no-monitor"
    )
    server.settled()
    number = count()

    def work() -> None:
        pairs = [{"user": 138, "movie": {"title": f"{next(number)}"}} for _ in range(4)]
        answer = server.http.post("/predict", json={"pairs": pairs})
        assert answer.status_code in {200, 429, 504}, answer.text

    for _ in range(6):
        stage.traffic(work, 0.05)


def rows(stage: Stage) -> None:
    """Rows of users are in Redis only, as is the list of entities; first rows are damaged, then Redis goes away."""
    repository = stage.repository("levi-rows")
    redis = stage.redis("levi-rows")
    publish = [sys.executable, "-m", "levi_serve.cli", "publish", "--model-repo", str(repository), "--redis", redis.url]
    subprocess.run(publish, check=True, capture_output=True, cwd=ROOT)
    flags = ("--redis", redis.url, "--remote-only", "user", "--absent-s", "0.1", "--cache-mib", "1")
    flags += ("--entities", redis.url)
    server = stage.server("levi-rows", repository, *flags)
    server.settled()
    for key in redis.client.scan_iter():
        if redis.client.strlen(key) > 8:
            redis.client.set(key, b"x" * redis.client.strlen(key))
    pairs = usual(2)

    def work() -> None:
        if stage.watched_s > 10 and redis.process.poll() is None:
            redis.kill()
        answer = server.http.post("/predict", json={"pairs": next(pairs)})
        assert answer.status_code == 200, answer.text

    stage.traffic(work)


def shift(stage: Stage) -> None:
    """Users about whom the heads disagree most ask for a film that the model does not know; true errors are large, and
    nobody has taken feedback away for three days.
    """
    repository, folder = stage.repository("levi-shift"), stage._folder / "levi-shift"
    feedback, state = folder / "feedback", folder / "state"
    feedback.mkdir()
    (feedback / f"{time.time_ns() - 3 * 86_400 * 10**9:020}-1{SUFFIX}").touch()
    server = stage.server("levi-shift", repository, "--monitor-state", str(state), "--feedback", str(feedback))
    server.settled()
    feed_back(repository, state, squared=4.0)
    apart = [{"user": user, "movie": 1001} for user in [*MANY][-100:]]
    number = count()

    def work() -> None:
        ask(server, apart)
        event = {"id": f"{next(number)}", **apart[0], "rating": 5, "time": 1_764_000_000}
        assert server.http.post("/feedback", json=event).status_code == 200

    stage.traffic(work)


def head(stage: Stage) -> None:
    """The usual traffic, and a head whose mean is half a rating and more from where it was."""
    server = stage.server("levi-head", stage.repository("levi-head", World(moved=0.8)))
    server.settled()
    pairs = usual(3)
    stage.traffic(lambda: ask(server, next(pairs)))


def quiet(stage: Stage) -> None:
    """Among the usual pairs is a user whose row is no number; then nobody asks any more."""
    server = stage.server("levi-quiet", stage.repository("levi-quiet"))
    server.settled()
    pairs = usual(4)

    def work() -> None:
        if stage.watched_s < 22:
            ask(server, next(pairs))
            refused(server, "/predict?user=13&movie=357", 500)

    stage.traffic(work)


def ask(server: Process, pairs: list[dict[str, Any]]) -> None:
    """Predictions that must be answered."""
    answer = server.http.post("/predict", json={"pairs": pairs})
    assert answer.status_code == 200, answer.text


def refused(server: Process, path: str, status: int) -> None:
    """A request that must fail like this."""
    assert server.http.get(path).status_code == status


def test_every_panel_has_data(watching: Prometheus) -> None:
    """Under mixed traffic no query of any panel comes back empty, or without a number."""
    chosen = [
        ("$__rate_interval", "5s"),
        ("$__range", "1m"),
        ("$job", "levi"),
        ("$instance", ".*"),
        ("$score", "spread"),
    ]
    empty: list[str] = []

    def asked() -> bool:
        empty.clear()
        for title, expression in queries():
            samples = watching.query(functools.reduce(lambda text, pair: text.replace(*pair), chosen, expression))
            if all(sample["value"][1] == "NaN" for sample in samples):
                empty.append(f"{title}: {expression}: {samples}")
        return not empty

    with suppress(AssertionError):
        until(asked, seconds=30)
    assert not empty, "\n".join(empty)


def test_every_alert_fires_in_its_scenario(stage: Stage, watching: Prometheus) -> None:
    """Each alert fires where it should, none fires where it should not, and under mixed traffic all are silent. What
    they say of themselves is whole.
    """
    nobody = stage.prometheus("nobody", {})
    assert set().union(*EXPECTED.values()) == set(alerts())
    missing: dict[str, set[str]] = {}

    def complete() -> bool:
        fired = watching.fired() | nobody.fired()
        missing.clear()
        missing.update({job: names - fired.get(job, set()) for job, names in EXPECTED.items()})
        return not any(missing.values())

    with suppress(AssertionError):
        until(complete, seconds=PATIENCE_S)
    fired = watching.fired() | nobody.fired()
    assert not {job: names for job, names in missing.items() if names}, fired
    surplus = {job: names - EXPECTED.get(job, set()) - MAY.get(job, set()) for job, names in fired.items()}
    assert not {job: names for job, names in surplus.items() if names}
    for alert in watching.http.get("/api/v1/alerts").json()["data"]["alerts"]:
        assert not any("<error" in text or "<no value" in text for text in alert["annotations"].values()), alert


def test_the_control_was_really_asked(watching: Prometheus) -> None:
    """The control is silent with traffic and a monitor at work, not for want of them."""
    (asked,) = watching.query('sum(levi_monitor_predictions_total{job="levi"})')
    assert float(asked["value"][1]) > 1000
    assert {sample["metric"]["job"] for sample in watching.query("up == 0")} == {"levi-down"}
