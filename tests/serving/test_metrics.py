"""levi_serve.metrics: what is counted, in one process and in several."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from levi_serve.metrics import Metrics, forget_worker
from levi_serve.monitor.streams import BLOCK
from levi_serve.store import Counts

from .conftest import ROOT
from .running import RunningApp
from .toy import HEADS

DURATION = "levi_http_request_duration_seconds"


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample of an exposition by name and labels."""
    families = text_string_to_metric_families(text)
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    """One sample, or None where there is none."""
    return samples(metrics.text().decode()).get((name, frozenset(labels.items())))


@pytest.fixture(params=["alone", "shared"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Metrics]:
    """Makes the metrics of one process, alone or as one of several."""
    return lambda: Metrics(tmp_path if request.param == "shared" else None)


def test_requests(make: Callable[[], Metrics]) -> None:
    """Requests are counted by route, method and status, their time in cumulative buckets; other methods are one."""
    metrics = make()
    for seconds in (0.0001, 0.0004, 0.004, 99.0):
        metrics.request("/predict", "GET", "200", seconds)
    metrics.request("/predict", "BREW", "405", 0.001)
    metrics.request("/predict", "STEEP", "405", 0.001)
    labels = {"route": "/predict", "method": "GET", "status": "200"}
    assert value(metrics, DURATION + "_count", **labels) == 4
    assert value(metrics, DURATION + "_sum", **labels) == pytest.approx(99.0045)
    buckets = {"0.0001": 1, "0.0002": 1, "0.0005": 2, "0.002": 2, "0.005": 3, "10.0": 3, "+Inf": 4}
    assert {le: value(metrics, DURATION + "_bucket", le=le, **labels) for le in buckets} == buckets
    assert value(metrics, DURATION + "_count", route="/predict", method="other", status="405") == 2


def test_counters(make: Callable[[], Metrics]) -> None:
    """What may happen is there from the start as zero, and counts."""
    metrics = make()
    problems = ("overloaded", "deadline", "not-ready", "row-unavailable", "model-output", "internal")
    expected = {("levi_errors_total", "problem", problem) for problem in problems}
    expected |= {("levi_store_lookups_total", "tier", field.name) for field in fields(Counts)}
    expected |= {("levi_redis_errors_total", "kind", kind) for kind in ("call", "write", "dropped")}
    expected |= {("levi_degraded_total", "side", side) for side in ("user", "item")}
    assert [value(metrics, name, **{label: known}) for name, label, known in expected] == [0.0] * len(expected)
    one, other = metrics.count_lookups(), metrics.count_lookups()
    one(Counts(table=5))
    other(Counts(table=1, redis=3))
    one(Counts(table=6))
    metrics.redis_call(0.001)
    metrics.degraded(0)
    metrics.degraded(1)
    metrics.degraded(1)
    metrics.problem("overloaded")
    assert value(metrics, "levi_store_lookups_total", tier="table") == 7
    assert value(metrics, "levi_store_lookups_total", tier="redis") == 3
    assert value(metrics, "levi_redis_duration_seconds_count") == 1
    assert value(metrics, "levi_degraded_total", side="user") == 1
    assert value(metrics, "levi_degraded_total", side="item") == 2
    assert value(metrics, "levi_errors_total", problem="overloaded") == 1


def test_batches_and_queues(make: Callable[[], Metrics]) -> None:
    """A run's size, time and wait are kept by lane; a queue's depth is what it is when it is read."""
    metrics = make()
    observe = metrics.observe_batches("score")
    depth = 7
    metrics.watch_queue("score", lambda: depth, 100)
    observe(3, 0.02, 0.3)
    observe(4, 0.02, 0.3)
    assert value(metrics, "levi_batch_size_sum", lane="score") == 7
    assert value(metrics, "levi_batch_duration_seconds_sum", lane="score") == pytest.approx(0.04)
    assert value(metrics, "levi_queue_wait_seconds_sum", lane="score") == pytest.approx(0.6)
    assert value(metrics, "levi_queue_depth", lane="score") == 7
    depth = 2
    assert value(metrics, "levi_queue_depth", lane="score") == 2


def test_stages(make: Callable[[], Metrics]) -> None:
    """Tokenising and the graph are timed apart; tokens are counted beside those that only fill a batch up."""
    metrics = make()
    metrics.observe_tokenising("encode")(0.5)
    metrics.observe_inference("encode")(0.25)
    count = metrics.count_tokens("encode")
    count(np.array([[1, 1, 1, 1], [1, 0, 0, 0]]))
    count(np.array([[1, 1]]))
    assert value(metrics, "levi_tokenise_duration_seconds_sum", lane="encode") == 0.5
    assert value(metrics, "levi_infer_duration_seconds_sum", lane="encode") == 0.25
    assert value(metrics, "levi_tokens_total", lane="encode", kind="real") == 7
    assert value(metrics, "levi_tokens_total", lane="encode", kind="padding") == 3


def test_sheds(make: Callable[[], Metrics]) -> None:
    """Each lane tells from the start how many items it may keep waiting and how many it has given up, and why."""
    metrics = make()
    shed = metrics.count_shed("score")
    metrics.watch_queue("score", lambda: 0, 64)
    assert value(metrics, "levi_queue_limit", lane="score") == 64
    assert value(metrics, "levi_shed_items_total", lane="score", reason="gone") == 0
    shed("full", 3)
    shed("full", 1)
    shed("late", 5)
    assert value(metrics, "levi_shed_items_total", lane="score", reason="full") == 4
    assert value(metrics, "levi_shed_items_total", lane="score", reason="late") == 5


def test_states(make: Callable[[], Metrics]) -> None:
    """Readiness, the breaker and the model in service go up and down."""
    metrics = make()
    metrics.ready(True)
    failures, available = {"call": 2}, False
    metrics.watch_redis(lambda: failures, lambda: available)
    for version in range(1, 9):
        metrics.serving("levi", version, "entity")
    assert value(metrics, "levi_ready") == 1
    assert value(metrics, "levi_redis_breaker_open") == 1
    served = {labels: told for (name, labels), told in samples(metrics.text().decode()).items() if name == SERVING[0]}
    assert served == {frozenset({("model", "levi"), ("version", "8"), ("views", "entity")}): 1}  # none of those before
    metrics.ready(False)
    failures, available = {"call": 5, "write": 1}, True
    assert value(metrics, "levi_ready") == 0
    assert value(metrics, "levi_redis_breaker_open") == 0
    assert value(metrics, "levi_redis_errors_total", kind="call") == 5
    assert value(metrics, "levi_redis_errors_total", kind="write") == 1


def test_series_are_few(make: Callable[[], Metrics]) -> None:
    """With every label at every value that it can have there are fewer series than one dashboard can hold: nothing
    that a client sends adds any.
    """
    metrics = make()
    routes = ("/predict", "/recommend", "/rank", "/livez", "/readyz", "/info", "/metrics", "unmatched")
    for route in routes:
        for method, status in [
            ("GET", "200"),
            ("POST", "200"),
            *product(("GET", "POST"), ("404", "422", "429", "504")),
        ]:
            metrics.request(route, method, status, 0.001)
    for i in range(1000):
        metrics.request("unmatched", f"METHOD{i}", "404", 0.001)
    assert len(metrics._observers) == 81
    for lane in ("score", "encode", "recommend", "tokenise"):
        metrics.observe_batches(lane)(1, 0.001, 0.001)
        metrics.observe_tokenising(lane)
        metrics.observe_inference(lane)
        metrics.count_tokens(lane)
        metrics.count_shed(lane)
        metrics.watch_queue(lane, lambda: 0, 1)
    metrics.serving("levi", 1, "entity")
    found = samples(metrics.text().decode())
    series = [name for name, _ in found if not name.startswith(DURATION)]
    assert len(series) < 500
    assert len(found) - len(series) == 81 * 19  # 80 combinations and `other`; 17 buckets, count and sum
    assert not [name for name, _ in found if name.endswith("_created")]


METHODS = ["GET", "POST", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE", "TRACE", "PROPFIND", "BREW"]
PATHS = [
    "/predict?user={0}&movie={0}",
    "/predict?user=138&movie=357&{0}=1",
    "/recommend?user={0}&k={0}",
    "/recommend?user=138&k=2",
    "/rank",
    "/predict",
    "/monitor/alarms/{0}/acknowledge",
    "/v2/models/{0}/versions/{0}/infer",
    "/page/{0}",
    "/{0}",
    "/metrics/{0}",
    "/metrics?name={0}",
    "/predict/..%2f{0}",
    "/livez",
    "/readyz",
    "/info",
    "/docs",
    "/openapi.json",
]
BODIES = [
    b"",
    b"{",
    b'{"pairs": [{"user": %d, "movie": %d}]}',
    b'{"pairs": [{"user": {"age": %d}, "movie": {"title": "%d"}}]}',
    b'{"user": %d, "items": [%d]}',
]


def test_a_hostile_client_adds_no_series(app: RunningApp) -> None:
    """Every method, path, body and id that a client makes up lands in series that were there before: after one round
    of everything, rounds with other names, ids and headers add none.
    """

    def round_of_everything(seed: int) -> None:
        for i, (method, path, body) in enumerate(product(METHODS, PATHS, BODIES)):
            word = f"{seed}{i:05}"
            content = body % (int(word), int(word)) if b"%d" in body else body
            headers = {"content-type": "application/json", "x-request-id": word, f"x-{word}": word, "host": f"h{word}"}
            name = f"{method}{word}" if method == "BREW" else method
            app.request(name, path.format(word), content=content, headers=headers)

    def series() -> set[tuple[str, frozenset[tuple[str, str]]]]:
        return set(samples(app.get("/metrics").text))

    round_of_everything(1)
    app.get("/metrics")
    before = series()
    round_of_everything(2)
    round_of_everything(3)
    assert series() == before
    assert len(before) < 4000
    assert not [label for _, labels in before for _, label in labels if re.search("[0-9]{6}", label)]


def worker(shared: Path, number: int, program: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """What a worker tells after it has run `program` on its metrics `m`; it is a process of its own, which ends."""
    code = (
        "import sys; from pathlib import Path; from levi_serve.metrics import Metrics;"
        "from levi_serve.store import Counts;"
        f"m = Metrics(Path(sys.argv[1]), {number}); {program}; print(m.text().decode())"
    )
    command = [sys.executable, "-c", code, str(shared)]
    return samples(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)


WORK = (
    "[m.request('/predict', 'GET', '200', 0.01) for _ in range({times})]; m.count_lookups()(Counts(cache={times}));"
    "m.watch_redis(lambda: {{}}, lambda: False); m.ready(True); m.serving('levi', 1, 'entity');"
    "m.watch_queue('score', lambda: 10 * {times}, 1);"
    "m.observe_batches('score')(1, 0.1, 0.1)"
)
ANSWERED = (DURATION + "_count", frozenset({("route", "/predict"), ("method", "GET"), ("status", "200")}))
CACHED = ("levi_store_lookups_total", frozenset({("tier", "cache")}))
READY = ("levi_ready", frozenset[tuple[str, str]]())
OPEN = ("levi_redis_breaker_open", frozenset[tuple[str, str]]())
WAITING = ("levi_queue_depth", frozenset({("lane", "score")}))
SERVING = ("levi_model_info", frozenset({("model", "levi"), ("version", "1"), ("views", "entity")}))


def test_workers_are_added_up(tmp_path: Path) -> None:
    """Whichever worker is asked tells the counts and the state of all."""
    worker(tmp_path, 0, WORK.format(times=3))
    two = worker(tmp_path, 1, WORK.format(times=4))
    third = worker(tmp_path, 2, "pass")
    for found in (two, third):
        assert (found[ANSWERED], found[CACHED]) == (7, 7)
        assert (found[READY], found[OPEN], found[WAITING], found[SERVING]) == (2, 2, 70, 1)


def test_replaced_worker_counts_on(tmp_path: Path) -> None:
    """A worker that ends is no longer ready and waits for nothing; its counts stay, and its successor adds to them,
    in the same files.
    """
    worker(tmp_path, 0, WORK.format(times=1))
    worker(tmp_path, 1, WORK.format(times=1))
    worker(tmp_path, 1, "m.serving('levi', 2, 'entity')")
    changing = {labels for name, labels in worker(tmp_path, 2, "pass") if name == SERVING[0]}
    assert sorted(dict(labels)["version"] for labels in changing) == ["1", "2"]
    forget_worker(tmp_path, 1)
    left = worker(tmp_path, 2, "pass")
    assert {labels for name, labels in left if name == SERVING[0]} == {SERVING[1]}
    assert (left[ANSWERED], left[CACHED]) == (2, 2)
    assert (left[READY], left[OPEN], left[WAITING]) == (1, 1, 10)
    files = set(tmp_path.glob("histogram_*"))
    successor = worker(tmp_path, 1, "m.request('/predict', 'GET', '200', 0.01)")
    assert (successor[ANSWERED], successor[READY]) == (3, 1)
    assert set(tmp_path.glob("histogram_*")) == files
    assert {file.name for file in tmp_path.glob("*.pid")} == {"0.pid", "1.pid", "2.pid"}


def test_forgetting_a_worker_that_never_counted(tmp_path: Path) -> None:
    """One that died while it started has left nothing, and that is no error."""
    forget_worker(tmp_path, 3)


def test_processes(tmp_path: Path) -> None:
    """Memory and CPU time: of this process, and of each worker by its number."""
    assert value(Metrics(), "levi_process_resident_memory_bytes") > 10_000_000
    metrics = Metrics(tmp_path, 5)
    (tmp_path / "6.pid").write_text(str(os.getppid()))
    (tmp_path / "7.pid").write_text(str(2**22 + 1))  # no process has this id
    found = {
        labels for name, labels in samples(metrics.text().decode()) if name == "levi_process_resident_memory_bytes"
    }
    assert found == {frozenset({("worker", "5")}), frozenset({("worker", "6")})}


def test_the_environment_does_not_decide(tmp_path: Path) -> None:
    """A variable that is meant for other programs neither moves a lone server's numbers nor breaks them."""
    code = (
        "from levi_serve.metrics import Metrics; m = Metrics(); m.ready(True); m.watch_queue('score', lambda: 3, 1);"
        "m.problem('deadline'); print(m.text().decode())"
    )
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert "levi_ready 1.0" in ended.stdout
    assert 'levi_queue_depth{lane="score"} 3.0' in ended.stdout
    assert list(tmp_path.iterdir()) == []


def test_documented(app: RunningApp) -> None:
    """docs/operations.md explains each metric, and none that does not exist."""
    monitor, known = app.live.service.monitor, np.ones(BLOCK, np.bool_)
    scores = np.zeros((BLOCK, len(monitor.reference.names)), np.float32)
    monitor.observe(range(BLOCK), scores, np.ones((BLOCK, HEADS)), (known, known))
    monitor.observe_errors(np.ones(1))
    exposed = set(re.findall(r"^# TYPE (\S+)", app.get("/metrics").text, re.MULTILINE))
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\| `(levi_[a-z_]+)", text, re.MULTILINE))
    assert documented == {name for name in exposed if not name.startswith("levi_process_")} | {"levi_process_"}
