"""levi_serve.rollout: versions that come and go under a running server. Each version of the toy has a rating of its
own, so that an answer betrays a mix.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import re
import shutil
import threading
import weakref
from collections.abc import Callable, Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from levi_serve import app as app_module
from levi_serve.bundle.manifest import BundleError
from levi_serve.monitor.streams import Streams
from levi_serve.replicas import Replicas
from levi_serve.repository import Policy, look, numbers
from levi_serve.versions import read_version_reference

from .conftest import Process, settings, until
from .running import Gate, RunningApp
from .test_workers import sample, workers
from .toy import USERS, Toy, edit_manifest, vouch

TOKEN = {"Authorization": "Bearer admin"}
PAIR = "/predict?user=138&movie=357"
SLOW = 3600.0
"""Seconds between two looks of the server's own: tests look themselves."""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with version 1."""
    Toy("entity").write(tmp_path)
    return tmp_path


@pytest.fixture
def app(repository: Path) -> Iterator[RunningApp]:
    """A server over it that looks when it is told to."""
    with RunningApp(settings(repository, watch_s=SLOW, admin_token="admin")) as running:
        yield running


def write(repository: Path, version: int, views: str = "entity", users: Mapping[Any, Any] = USERS) -> Path:
    """Another version, exported as the exporter does it: staged beside and renamed, the model last."""
    staged = repository / f".staged{version}"
    Toy(views, users=users).write(staged, version)
    for name in ("levi_encoder", "levi"):
        if (staged / name).is_dir():
            (staged / name / str(version)).rename(repository / name / str(version))
    shutil.rmtree(staged)
    return repository / "levi" / str(version)


def looks(app: RunningApp, times: int = 2) -> None:
    """So many looks at the repository."""
    for _ in range(times):
        app.run(app.rollout.step())


def answers(app: RunningApp) -> int:
    """The version that answers a request which names none."""
    answer = app.get(PAIR)
    assert answer.status_code == 200, answer.text
    return answer.json()["version"]


def versions(app: RunningApp) -> dict[int, str]:
    """What /info says of each version: its labels, or why it is not loaded."""
    return {
        int(v["version"]): v["reason"] or ",".join(v["labels"]) or "loaded" for v in app.get("/info").json()["versions"]
    }


def metric(app: RunningApp, name: str) -> float:
    """One value of /metrics."""
    (line,) = (line for line in app.get("/metrics").text.splitlines() if line.startswith(name + " "))
    return float(line.split()[1])


def admin(app: RunningApp, order: str, **parameters: Any) -> Any:
    """An order to the model repository."""
    return app.request("POST", f"/v2/repository/models/levi/{order}", json={"parameters": parameters}, headers=TOKEN)


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("latest", Policy(newest=1)),
        ("latest:3", Policy(newest=3)),
        ("7", Policy(numbers=(7,))),
        ("7, 2,7", Policy(numbers=(2, 7))),
    ],
)
def test_policies(text: str, policy: Policy) -> None:
    assert Policy.parse(text) == policy


@pytest.mark.parametrize("text", ["", "newest", "latest:0", "latest:", "0", "01", "-1", "1,", "1 2", "1,latest", "１"])
def test_what_is_no_policy(text: str) -> None:
    with pytest.raises(ValueError, match="must be latest"):
        Policy.parse(text)


def test_odd_folders_are_no_versions(tmp_path: Path) -> None:
    """Only plain positive integers are, by value."""
    for name in ("2", "10", "9", "latest", "01", "-1", "0", "1.tmp", "1e3", "٣", "9" * 30):
        (tmp_path / "levi" / name).mkdir(parents=True)
    assert numbers(tmp_path, "levi") == [10, 9, 2]


def test_a_look_changes_with_every_write(repository: Path) -> None:
    """A file that grows, is replaced by one of the same size and time, comes or goes gives another look; reading does
    not.
    """
    folder = repository / "levi" / "1"
    seen = {look(repository, "levi", 1)}
    (folder / "golden.jsonl").read_bytes()
    assert look(repository, "levi", 1) in seen
    for change in (
        lambda: (folder / "golden.jsonl").write_bytes(b"x" * 9999),
        lambda: (shutil.copy2(folder / "model.onnx", folder / "m"), (folder / "m").rename(folder / "model.onnx")),
        (folder / "new").touch,
        (folder / "manifest.json").unlink,
        lambda: shutil.rmtree(repository / "levi_encoder" / "1"),
    ):
        change()
        now = look(repository, "levi", 1)
        assert now not in seen
        seen.add(now)


def test_a_new_version_takes_over(app: RunningApp, repository: Path, request: pytest.FixtureRequest) -> None:
    """After two looks alike; the old one is forgotten, though nobody collects garbage, and its threads end."""
    gc.disable()
    request.addfinalizer(gc.enable)
    old = weakref.ref(app.live.service.engine)
    threads = old()._threads
    write(repository, 2)
    looks(app, 1)
    assert answers(app) == 1  # it may still be being written
    looks(app, 1)
    assert answers(app) == 2
    assert versions(app) == {2: "stable"}
    assert metric(app, 'levi_served_version{label="stable"}') == 2
    assert re.findall(r"^levi_model_info\{.*", app.get("/metrics").text, re.MULTILINE) == [
        'levi_model_info{model="levi",version="2",views="entity"} 1.0'
    ]
    assert metric(app, 'levi_version_loads_total{outcome="usable"}') == 2
    until(lambda: all(pool._shutdown for pool in threads))
    until(lambda: old() is None)


def test_a_new_version_has_a_monitor_of_its_own(repository: Path, tmp_path: Path) -> None:
    """Though both have the same graph, evidence about the old one is none about the new one; it is there again when
    the old one is back.
    """
    with RunningApp(settings(repository, watch_s=SLOW, monitor_state=tmp_path / "state", admin_token="admin")) as app:

        def watched() -> int:
            return app.get("/monitor").json()["predictions"]

        assert [answers(app), answers(app), watched()] == [1, 1, 2]
        first = app.live.service.monitor
        write(repository, 2)
        looks(app)
        assert watched() == 0
        assert [answers(app), watched()] == [2, 1]
        assert app.live.service.monitor is not first
        assert len(list((tmp_path / "state").iterdir())) == 2
        assert admin(app, "load", version=1, label="stable").status_code == 200
        assert [watched(), answers(app), watched()] == [2, 1, 3]


def test_by_itself(repository: Path) -> None:
    """The server looks on its own, after the interval of its settings."""
    with RunningApp(settings(repository, watch_s=0.05)) as app:
        write(repository, 2)
        until(lambda: answers(app) == 2)


def test_a_pinned_version_stays(repository: Path) -> None:
    """With a number, newer versions are not served."""
    with RunningApp(settings(repository, watch_s=SLOW, version="1")) as app:
        write(repository, 2)
        looks(app, 3)
        assert versions(app) == {1: "stable"}


def test_the_newest_two(repository: Path) -> None:
    """`latest:2` keeps two loaded, the newest answers, and the oldest goes when a third comes."""
    with RunningApp(settings(repository, watch_s=SLOW, version="latest:2")) as app:
        for version, loaded in ((2, [1, 2]), (3, [2, 3])):
            write(repository, version)
            looks(app)
            assert answers(app) == version
            assert sorted(app.live.loaded) == loaded


def test_two_exports_at_once(app: RunningApp, repository: Path) -> None:
    """Of two versions that appear between two looks, the newer one answers and the other is not even loaded."""
    write(repository, 3)
    write(repository, 2)
    looks(app)
    assert versions(app) == {3: "stable"}
    assert metric(app, 'levi_version_loads_total{outcome="usable"}') == 2


def test_a_clock_in_the_past(app: RunningApp, repository: Path) -> None:
    """The number says what is newer, not the files' times."""
    folder = write(repository, 2)
    for path in (folder, *folder.iterdir()):
        os.utime(path, (1, 1))
    looks(app)
    assert answers(app) == 2


def cut(folder: Path, repository: Path) -> str:
    (folder / "model.onnx").write_bytes((folder / "model.onnx").read_bytes()[:-10])
    return "model.onnx: checksum differs"


def cut_and_vouched_for(folder: Path, repository: Path) -> str:
    (folder / "model.onnx").write_bytes((folder / "model.onnx").read_bytes()[:-10])
    vouch(repository, folder)
    return "model.onnx: ONNX Runtime cannot load it"


def wrong_checksum(folder: Path, repository: Path) -> str:
    files = json.loads((folder / "manifest.json").read_text())["files"]
    edit_manifest(folder, files=dict.fromkeys(files, "0" * 64))
    return "checksum differs"


def wrong_golden(folder: Path, repository: Path) -> str:
    lines = (folder / "golden.jsonl").read_text().splitlines()
    first = json.loads(lines[0])
    (folder / "golden.jsonl").write_text("\n".join([json.dumps({**first, "rating": first["rating"] + 1}), *lines[1:]]))
    vouch(repository, folder)
    return "golden.jsonl: line 1: the ratings are off by 1"


def moved(folder: Path, repository: Path) -> str:
    edit_manifest(folder, version=7)
    return "the folder was moved"


def no_encoder(folder: Path, repository: Path) -> str:
    shutil.rmtree(repository / "levi_encoder" / folder.name)
    return "model.onnx: No such file"


def no_manifest(folder: Path, repository: Path) -> str:
    (folder / "manifest.json").unlink()
    return "manifest.json: missing; the version was not exported completely"


FAULTS = [cut, cut_and_vouched_for, wrong_checksum, wrong_golden, moved, no_encoder, no_manifest]


@pytest.mark.parametrize("fault", FAULTS)
def test_an_unusable_version(
    app: RunningApp, repository: Path, caplog: pytest.LogCaptureFixture, fault: Callable[[Path, Path], str]
) -> None:
    """It is never served; log, metric and /info say why, once; the old one goes on. Mended, it is served."""
    reason = fault(write(repository, 2), repository)
    looks(app, 4)
    assert answers(app) == 1
    assert app.get("/readyz").status_code == 200
    assert reason in versions(app)[2]
    assert [record for record in caplog.records if record.levelname == "ERROR" and reason in record.message] != []
    assert metric(app, "levi_unusable_versions") == 1
    assert metric(app, 'levi_version_loads_total{outcome="unusable"}') == 1
    for name in ("levi", "levi_encoder"):
        shutil.rmtree(repository / name / "2", ignore_errors=True)
    looks(app)
    assert metric(app, "levi_unusable_versions") == 0
    write(repository, 2)
    looks(app)
    assert versions(app) == {2: "stable"}


def test_file_by_file(app: RunningApp, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A version that is copied in file by file, the manifest first, with a look after each: not served before the last
    file is there.
    """
    other = tmp_path_factory.mktemp("other")
    source = write(Toy("entity").write(other, 1).parents[1], 2)
    files = sorted(source.iterdir(), key=lambda file: file.name != "manifest.json")
    for name in ("levi", "levi_encoder"):
        (repository / name / "2").mkdir()
    shutil.copy(other / "levi_encoder" / "2" / "model.onnx", repository / "levi_encoder" / "2")
    for file in files:
        looks(app)
        assert answers(app) == 1
        shutil.copy(file, repository / "levi" / "2")
    looks(app)
    assert versions(app) == {2: "stable"}


def test_files_that_change_while_they_are_loaded(
    app: RunningApp, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was loaded is not what lies there now: not served; the next look tries again."""
    folder = write(repository, 2)
    looks(app, 1)
    load = app_module.load

    def slow(*given: Any) -> Any:
        version = load(*given)
        (folder / "more").touch()
        return version

    monkeypatch.setattr(app_module, "load", slow)
    looks(app, 1)
    assert "changed while it was being loaded" in versions(app)[2]
    monkeypatch.setattr(app_module, "load", load)
    looks(app)
    assert answers(app) == 2


def test_a_newest_version_that_is_unusable_at_the_start(repository: Path) -> None:
    """A server that starts then serves the one before, as those do that run already."""
    cut(write(repository, 2), repository)
    with RunningApp(settings(repository, watch_s=SLOW)) as app:
        assert answers(app) == 1
        assert "checksum" in versions(app)[2]


def test_nothing_usable_yet(tmp_path: Path) -> None:
    """A server over an empty repository waits, says so, and serves the first version that comes."""
    with RunningApp(settings(tmp_path, watch_s=SLOW)) as app:
        assert "there is no model to serve" in app.get("/readyz").json()["detail"]
        (tmp_path / "levi").mkdir()
        looks(app)
        assert "holds no version" in app.get("/readyz").json()["detail"]
        (tmp_path / "levi_encoder").mkdir()
        no_manifest(write(tmp_path, 1), tmp_path)
        looks(app)
        assert "not exported completely" in app.get("/readyz").json()["detail"]
        write(tmp_path, 2)
        looks(app)
        assert app.get("/readyz").status_code == 200
        assert app.get("/info").json()["reason"] is None


def test_a_version_is_taken_back(app: RunningApp, repository: Path) -> None:
    """When its folder goes, the one before answers again; the last one stays whatever happens to its folder."""
    write(repository, 2)
    looks(app)
    shutil.rmtree(repository / "levi" / "2")
    looks(app)
    assert answers(app) == 1
    shutil.rmtree(repository / "levi")
    looks(app)
    assert answers(app) == 1


def test_one_request_sees_one_version(app: RunningApp, repository: Path) -> None:
    """Requests under way when the version changes, one of them still sending its body's tail and one in the middle of
    its way through the lanes, are answered by the one that they met; the old one is closed only then.
    """
    old = app.live.service
    lane = old.engine._score
    gate = Gate(app, "_encode")
    new = {"pairs": [{"user": 138, "movie": 357}, {"user": 138, "movie": {"title": "Another film"}}]}

    async def during(work: Coroutine[Any, Any, Any]) -> Any:
        asked = asyncio.ensure_future(app.client.post("/predict", json=new))
        wanted = asyncio.ensure_future(
            app.client.post("/recommend", json={"user": {"age": 41}, "k": 3}),
        )
        async with asyncio.timeout(10):
            while not gate.reached(2):
                await asyncio.sleep(0)
        await work
        return asked, wanted

    async def replaced() -> None:
        await app.rollout.step()
        await app.rollout.step()
        assert app.live.service is not old
        for _ in range(100):
            await asyncio.sleep(0)
        assert not lane._closing

    write(repository, 2)
    asked, wanted = app.run(during(replaced()))
    assert answers(app) == 2
    gate.open()

    async def results() -> list[Any]:
        return [await asked, await wanted]

    first, second = app.run(results())
    assert [answer["version"] for answer in first.json()] == [1, 1]
    assert {answer["version"] for answer in second.json()["items"]} == {1}
    until(lambda: lane._closing)


def test_a_body_that_takes_long_is_read_by_the_version_that_answers(app: RunningApp, repository: Path) -> None:
    """A request whose body ends after the change is parsed and answered by the new version, whole."""
    half = threading.Event()

    async def body() -> Any:
        yield b'{"pairs": [{"user": 138, '
        half.set()
        while app.live.service.number == 1:
            await asyncio.sleep(0.01)
        yield b'"movie": 357}]}'

    headers = {"content-type": "application/json", "x-request-timeout-ms": "60000"}
    asked = asyncio.run_coroutine_threadsafe(app.client.post("/predict", content=body(), headers=headers), app.loop)
    assert half.wait(10)
    write(repository, 2)
    looks(app)
    assert [answer["version"] for answer in asked.result(10).json()] == [2]


def test_orders_need_the_admin_token(app: RunningApp, repository: Path) -> None:
    """Without the token nothing is told or done; a server without one lets nobody."""
    for path in ("index", "models/levi/load", "models/levi/unload"):
        refused = app.request("POST", f"/v2/repository/{path}", json={})
        assert refused.status_code == 401
        assert app.request("POST", f"/v2/repository/{path}", headers={"Authorization": "Bearer x"}).status_code == 401
    with RunningApp(settings(repository, watch_s=SLOW)) as closed:
        assert closed.request("POST", "/v2/repository/index", headers=TOKEN).status_code == 403


def test_the_admin_token_opens_the_rest_as_well(repository: Path) -> None:
    """Where a token is asked for, the admin's will do; the token does not open what is the admin's."""
    with RunningApp(settings(repository, watch_s=SLOW, token="user", admin_token="admin")) as app:
        user = {"Authorization": "Bearer user"}
        for headers, statuses in ((TOKEN, (200, 200)), (user, (200, 401)), ({}, (401, 401))):
            assert app.get(PAIR, headers=headers).status_code == statuses[0]
            assert app.request("POST", "/v2/repository/index", headers=headers).status_code == statuses[1]


def test_orders(app: RunningApp, repository: Path) -> None:
    """Load beside the policy, point a label, take back by label or by unloading, and list it all."""
    write(repository, 2)
    looks(app)
    assert admin(app, "load", version=1).status_code == 200
    assert versions(app) == {2: "stable", 1: "loaded"}
    assert admin(app, "load", version=1, label="stable").status_code == 200
    assert versions(app) == {2: "loaded", 1: "stable"}
    assert answers(app) == 1
    write(repository, 3)
    looks(app)
    assert versions(app) == {3: "loaded", 1: "stable"}
    assert admin(app, "load", version=3, label="canary").status_code == 200
    assert versions(app) == {3: "canary", 1: "stable"}
    assert metric(app, 'levi_served_version{label="canary"}') == 3
    assert admin(app, "load", label="stable").status_code == 200  # as the policy has it
    assert versions(app) == {3: "stable", 1: "loaded"}
    assert admin(app, "unload", version=3).status_code == 200
    assert versions(app) == {2: "stable", 1: "loaded"}
    index = app.request("POST", "/v2/repository/index", headers=TOKEN)
    assert index.json()[0] == {"name": "levi", "version": "2", "state": "READY", "reason": "", "labels": ["stable"]}


def test_orders_that_are_refused(app: RunningApp, repository: Path) -> None:
    """A version that is missing or unusable, the last one, a wrong model, a wrong body: refused, nothing changes."""
    cut(write(repository, 2), repository)
    for order, parameters, status in (
        ("load", {"version": 9}, 409),
        ("load", {"version": 2, "label": "stable"}, 409),
        ("load", {"version": 1, "label": "canary"}, 409),
        ("load", {"version": 0}, 422),
        ("load", {"version": 1, "label": "newest"}, 422),
        ("load", {"config": "{}"}, 422),
        ("unload", {"version": 1}, 409),
        ("unload", {"version": 5}, 404),
        ("unload", {}, 422),
    ):
        answer = admin(app, order, **parameters)
        assert (answer.status_code, order, parameters) == (status, order, parameters)
        assert answer.headers["content-type"] == "application/problem+json"
    assert app.request("POST", "/v2/repository/models/x/load", headers=TOKEN).status_code == 404
    looks(app)
    assert {number: said for number, said in versions(app).items() if number != 2} == {1: "stable"}
    ready = app.request("POST", "/v2/repository/index", json={"ready": True}, headers=TOKEN).json()
    assert [state["version"] for state in ready] == ["1"]


def test_a_canary_with_another_schema(app: RunningApp, repository: Path) -> None:
    """It could not read the stable version's requests, so the label does not point at it."""
    folder = write(repository, 2)
    schema = json.loads((folder / "manifest.json").read_text())["schema"]
    edit_manifest(folder, schema={**schema, "rating_max": 6.0})
    assert admin(app, "load", version=2).status_code == 200
    assert admin(app, "load", version=1, label="canary").status_code == 409
    assert versions(app) == {2: "stable", 1: "loaded"}


def test_a_redis_that_refuses_does_not_stop_the_old_version(
    app: RunningApp, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is no version's fault leaves the old one serving, and is tried again without a change of the files."""
    write(repository, 2)

    def bug(*_: Any) -> Any:
        raise MemoryError("no room")

    load = app_module.load
    monkeypatch.setattr(app_module, "load", bug)
    looks(app)
    assert versions(app) == {2: "loading the model failed: no room", 1: "stable"}
    monkeypatch.setattr(app_module, "load", load)
    assert admin(app, "load").status_code == 200
    assert versions(app) == {2: "stable"}


def test_reloads_leave_nothing_behind(app: RunningApp, repository: Path) -> None:
    """Ten versions later there is one engine, with as many watched queues and mapped files as before."""
    seen: list[weakref.ref[Any]] = []

    def left() -> tuple[int, ...]:
        alive = sum(service() is not None for service in seen)
        mapped = [f for f in Path("/proc/self/maps").read_text().splitlines() if str(repository) in f]
        watched = sum(map(len, app.metrics._depths.values()))
        return alive, watched, len(mapped), len(app.rollout._seen) + len(app.rollout._failures)

    seen.append(weakref.ref(app.live.service))
    write(repository, 2)
    looks(app)
    seen.append(weakref.ref(app.live.service))
    until(lambda: left()[0] == 1)  # version 1 has been let go of
    before = left()
    for version in range(3, 13):
        write(repository, version)
        shutil.rmtree(repository / "levi" / str(version - 2))
        looks(app)
        seen.append(weakref.ref(app.live.service))
    until(lambda: left() == before, lambda: f"{left()} {before}")


def test_a_repository_that_is_away(app: RunningApp, repository: Path) -> None:
    """A disk that is gone for a while takes nothing out of service and is no new failure."""
    (repository / "levi").rename(repository / "away")
    looks(app)
    assert answers(app) == 1
    (repository / "away").rename(repository / "levi")
    looks(app)
    assert versions(app) == {1: "stable"}


def test_numbers_of_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="No such file"):
        numbers(tmp_path, "levi")


def test_every_worker_follows(start: Callable[..., Process], repository: Path) -> None:
    """A new version reaches all workers by itself, and so does an order that one of them was given."""
    server = start("--model-repo", str(repository), "--workers", "2", "--watch-s", "0.1", "--admin-token", "admin")
    server.ready(2)

    def served() -> set[int]:
        """By 20 connections: all by one worker would happen once in half a million times."""
        return {httpx.get(server.url + PAIR, timeout=10).json()["version"] for _ in range(20)}

    write(repository, 2)
    until(lambda: server.text().count("stable: levi/2 instead of 1") == 2, server.text)
    assert served() == {2}
    order = {"parameters": {"version": 1, "label": "stable"}}
    answer = httpx.post(f"{server.url}/v2/repository/models/levi/load", json=order, headers=TOKEN, timeout=10)
    assert answer.status_code == 200
    until(lambda: server.text().count("stable: levi/1 instead of 2") == 2, server.text)
    assert served() == {1}
    assert sample(httpx.get(f"{server.url}/metrics").text, 'levi_served_version{label="stable"}') == 1
    (victim,) = workers(server)[:1]
    victim.terminate()  # its successor does as the others
    until(lambda: server.text().count("stable: levi/1") + server.text().count("ready: levi/") >= 8, server.text)
    assert served() == {1}


def test_scrapes_during_reloads(start: Callable[..., Process], tmp_path: Path) -> None:
    """While versions come and go under two workers each scrape is answered whole, no counter goes back, and in the end
    one series says what is served. A monitor over the server counts what its version was asked, and no more, though
    the monitor's own counters are of the version that whoever answers has in service.
    """
    crowd = USERS | {number: {"age": 20} for number in range(2000, 2320)}
    Toy("entity", users=crowd).write(tmp_path / "models")
    server = start("--model-repo", str(tmp_path / "models"), "--workers", "2", "--watch-s", "0.05", "--drain-s", "0")
    server.ready(2)
    texts: list[str] = []
    over = threading.Event()

    def scrape() -> None:
        while not over.wait(0.05):
            answer = httpx.get(f"{server.url}/metrics", timeout=10)
            texts.append(answer.text if answer.status_code == 200 else "")

    def scraped() -> None:
        """Wait for one that began later than now."""
        done = len(texts)
        until(lambda: len(texts) >= done + 2)

    scraping = threading.Thread(target=scrape)
    scraping.start()
    try:
        scraped()
        for version in (2, 3, 4):
            pairs = [{"user": user, "movie": 357} for user in crowd if user >= 2000]
            assert httpx.post(f"{server.url}/predict", json={"pairs": pairs}, timeout=10).status_code == 200
            scraped()
            write(tmp_path / "models", version, users=crowd)
            until(lambda said=f"stable: levi/{version} instead": server.text().count(said) == 2, server.text)
        scraped()
    finally:
        over.set()
        scraping.join()
    before: dict[Any, float] = {}
    for text in texts:
        assert "levi_ready 2.0" in text, "a scrape failed"
        for family in text_string_to_metric_families(text):
            if family.type in {"counter", "histogram"} and not family.name.startswith("levi_monitor_"):
                for one in family.samples:
                    key = one.name, tuple(sorted(one.labels.items()))
                    assert one.value >= before.get(key, 0), key
                    before[key] = one.value
    assert before["levi_version_loads_total", (("outcome", "usable"),)] == 8
    served = re.findall(r"^levi_model_info\{.*", texts[-1], re.MULTILINE)
    assert served == ['levi_model_info{model="levi",version="4",views="entity"} 1.0']
    streams = Streams.of(read_version_reference(tmp_path / "models", "levi", 1))
    replicas = Replicas(streams, "levi", 1)
    assert 0 < sum(int(replicas.added({"a": text})[0][0].sum()) for text in texts) <= 320
