"""training.retrain: nights on the tiny tables, from a log to a version or a reason, whatever interrupts them."""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from levi_serve.bundle.feedback import Event, Events, encode_event
from levi_serve.bundle.manifest import read_manifest
from levi_serve.bundle.rows import Table
from tests.serving.conftest import settings, until
from tests.serving.running import RunningApp
from training import cli, gates, retrain
from training.datasets import load
from training.datasets.dataset import Dataset
from training.errors import RunError, UsageError
from training.gates import Margins
from training.night import Report, read_report
from training.retrain import Retraining
from training.run import Run


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates, "ENOUGH", 10)


@dataclass(frozen=True)
class World:
    """A base run, its repository, a feedback log and a state folder."""

    job: Retraining
    truth: Dataset

    @property
    def log(self) -> Path:
        return Path(self.job.log)

    def events(self, name: str, pairs: Sequence[int], random: bool = False) -> list[Event]:
        """Events of these numbers of pairs: what the base data's own user and item means say, or random ones."""
        data, r = self.truth, self.truth.ratings
        mean = float(r.value.mean())
        of_user, of_item = (
            np.array([r.value[column == k].mean() - mean if (column == k).any() else 0 for k in range(count)])
            for column, count in ((r.user, len(data.users)), (r.item, len(data.items)))
        )
        rng, width = np.random.default_rng(len(name)), len(data.items)
        users, items = data.users["id"].to_pylist(), data.items["id"].to_pylist()
        said = []
        for k in pairs:
            u, i = divmod(k, width)
            sensible = float(np.clip(np.rint(mean + of_user[u] + of_item[i]), 1, 5))
            rating = float(rng.integers(1, 6)) if random else sensible
            said.append(Event(id=f"{name}-{k}", user=users[u], item=items[i], rating=rating, time=9, received=10))
        return said

    def feed(self, name: str, pairs: Sequence[int], random: bool = False) -> None:
        """A file of such events, as a server leaves it."""
        lines = map(encode_event, self.events(name, pairs, random))
        (self.log / f"{name}.events").write_bytes(b"".join(lines))

    def versions(self) -> list[str]:
        return sorted(path.name for path in (self.job.repository / "levi").iterdir() if path.name.isdecimal())

    def night(self, number: int) -> Path:
        return self.job.state / "nights" / f"{number:04}"


@pytest.fixture
def world(entity_run: Run, entity_repository: Path, tables: Path, cache: Path, tmp_path: Path) -> World:
    shutil.copytree(entity_repository, tmp_path / "repository")
    (tmp_path / "log").mkdir()
    job = Retraining(
        base=entity_run.folder,
        repository=tmp_path / "repository",
        name="levi",
        log=str(tmp_path / "log"),
        entities=None,
        state=tmp_path / "state",
        cache=cache,
        device="cpu",
        data=None,
        margins=Margins(id=0.05, newest=0.05, ood=0.3),
        epochs=3,
        learning_rate=2e-3,
        warm=True,
    )
    return World(job, load("tables", tables))


@pytest.fixture
def _quick_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """An export that only says where it comes from: tracing graphs takes seconds."""

    def export(run: Run, repository: Path, name: str, *_: object) -> Path:
        number = max(int(path.name) for path in (repository / name).iterdir() if path.name.isdecimal()) + 1
        before = repository / name / str(number - 1) / "manifest.json"
        manifest = json.loads(before.read_text())
        manifest["version"] = number
        manifest["run"] |= {"data_hash": run.record.data_hash, "fitted": run.record.finished}
        folder = repository / name / str(number)
        folder.mkdir()
        (folder / "manifest.json").write_text(json.dumps(manifest))
        return folder

    monkeypatch.setattr(retrain, "export", export)


def test_a_night(world: World) -> None:
    """Feedback that a live server took becomes the next version, which that server takes by itself; the report says
    how; nothing is left to do, however often the events are sent again.
    """
    repository = world.job.repository
    with RunningApp(settings(repository, feedback=world.log, watch_s=0.05)) as server:
        for event in world.events("one", range(0, 2400, 4)):
            said = {"id": event.id, "user": event.user, "movie": event.item, "rating": event.rating, "time": 9}
            assert server.request("POST", "/feedback", json=said).status_code == 200
        report = world.job.run()
        question = "/predict?user=138&movie=357"
        until(lambda: server.get(question).json()["version"] == 2)
        assert len(list(world.log.glob("*.events"))) == 1  # the server still writes to it
        assert world.job.run() is None
    assert report is not None
    assert (report.version, report.plan.version, report.plan.since) == (2, 1, 0)
    assert read_manifest(world.job.repository, "levi", 2).run["dataset"] == "snapshot"
    assert report.plan.taken.events == 600
    kinds = {one.name: one.kind for one in report.verdict.slices}
    assert (kinds["ID test"], kinds["newest"], kinds["OOD"]) == ("id", "newest", "seen")
    assert read_report(world.night(1)) == report
    text = (world.night(1) / "report.md").read_text()
    assert "promoted: version 2" in text
    for name in ("slices.svg", "nights.svg"):
        assert f"({name})" in text
        assert (world.night(1) / name).stat().st_size > 1000
    assert world.job.run() is None
    assert list(world.log.glob("*.events")) == []
    world.feed("one", range(0, 2400, 4))  # a replay of all of it
    assert world.job.run() is None
    assert world.versions() == ["1", "2"]


def test_erased_and_put(world: World, tmp_path: Path) -> None:
    """Who was erased while the server ran is not in the next version, nor in what nights keep of events; who was put
    is, and is not taken for trained on.
    """
    repository, listed = world.job.repository, tmp_path / "entities"
    film, admin = {"title": "star house", "genres": ["Drama"], "year": 1999}, {"Authorization": "Bearer a"}
    early = world.events("early", [0])[0]
    (world.job.state / "refused").mkdir(parents=True)
    (world.job.state / "refused/0001.events").write_bytes(encode_event(early))
    user, movie = early.user, world.truth.items["id"][7].as_py()
    chosen = settings(repository, feedback=world.log, entities=listed, admin_token="a", timeout_ms=60_000)
    with RunningApp(chosen) as server:
        for event in world.events("one", range(0, 2400, 4)):
            said = {"id": event.id, "user": event.user, "movie": event.item, "rating": event.rating, "time": 9}
            assert server.request("POST", "/feedback", json=said).status_code == 200
        for place in (f"user/{user}", f"movie/{movie}"):
            assert server.request("DELETE", f"/entities/{place}", headers=admin).status_code == 200
        late = {"id": "late", "user": user, "movie": 357, "rating": 3, "attributes": {"user": {"age": 30}}}
        assert server.request("POST", "/feedback", json=late).status_code == 200
        assert server.request("PUT", "/entities/movie/9001", json=film, headers=admin).status_code == 200
    report = replace(world.job, entities=str(listed)).run()
    assert report is not None
    assert report.version == 2
    kept = [event for path in world.job.state.glob("*/*.events") for event in Events(path)]
    assert kept
    assert not [event for event in kept if user == event.user or movie == event.item]
    folder = repository / "levi/2"
    for name, ident in (("users", user), ("movies", movie)):
        assert Table(repository / "levi/1", name).find([ident])[0] >= 0
        assert Table(folder, name).find([ident])[0] == -1
    with RunningApp(settings(repository)) as server:  # without the list
        assert server.get(f"/predict?user={user}&movie=357").status_code == 404
        assert server.get(f"/predict?user=138&movie={movie}").status_code == 404
        answer = server.get("/predict?user=138&movie=9001").json()
        assert (answer["version"], answer["cold_start"]) == (2, ["movie"])


@pytest.mark.usefixtures("_quick_export")
def test_poison(world: World) -> None:
    """Random ratings are refused: the old version goes on, the events are set aside, the next night does without."""
    world.feed("good", range(0, 2400, 8))
    assert world.job.run() is not None
    world.feed("poison", range(1, 2400, 3), random=True)
    with pytest.raises(RunError, match=r"night 2 is refused: .*newest ratings make sense.*version 2 goes on"):
        world.job.run()
    assert world.versions() == ["1", "2"]
    refused = world.job.state / "refused/0002.events"
    assert len(list(Events(refused))) == 800
    assert "**Why not:**" in (world.night(2) / "report.md").read_text()
    world.feed("poison", range(1, 2400, 3), random=True)  # sent again: still known
    assert world.job.run() is None
    world.feed("fine", range(3, 2400, 8))
    report = world.job.run()
    assert report is not None
    assert (report.plan.nights, report.plan.since, report.version) == ((1, 3), 1, 3)
    refused.rename(world.log / "again.events")  # what was refused gets another try
    with pytest.raises(RunError, match="night 4 is refused"):
        world.job.run()


@pytest.mark.usefixtures("_quick_export")
@pytest.mark.parametrize("step", ["take", "merge", "fit", "open_run", "judge", "export", "write_json"])
def test_a_kill_at_every_step(world: World, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before and after each step: the next start ends with the version, once, and every event once."""
    world.feed("one", range(0, 2400, 8))
    real = getattr(retrain, step)
    for after in (False, True):

        def killed(*arguments: object, after: bool = after, **keywords: object) -> None:
            if after:
                real(*arguments, **keywords)
            raise KeyboardInterrupt

        with monkeypatch.context() as patches:
            patches.setattr(retrain, step, killed)
            with pytest.raises(KeyboardInterrupt):
                world.job.run()
    report = world.job.run()
    assert report is not None
    assert (report.night, report.version, report.plan.taken.events) == (1, 2, 300)
    assert world.versions() == ["1", "2"]
    assert len(list(Events(world.job.state / "events/0001.events"))) == 300


def test_two_at_a_time(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """The second ends at once, with one line and exit code 1, and touches nothing."""
    world.feed("one", [0])
    world.job.state.mkdir()
    flags = ["--feedback", str(world.log), "--state", str(world.job.state), "--cache", str(world.job.cache)]
    with (world.job.state / ".lock").open("w") as first:
        fcntl.flock(first, fcntl.LOCK_EX)
        first.write("4711")
        first.flush()
        assert cli.main(["retrain", str(world.job.base), str(world.job.repository), *flags]) == 1
    assert capsys.readouterr().err.splitlines() == [
        f"levi-train retrain: {world.job.state}: another retraining runs here (process 4711)"
    ]
    assert [path.name for path in world.log.iterdir()] == ["one.events"]


def test_wrong_usage(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No log, no version, a version from elsewhere: one line each, exit code 2, and no event is taken."""

    def told(**changes: Path) -> str:
        given = {"run": world.job.base, "repository": world.job.repository, "feedback": world.log, **changes}
        flags = ["--feedback", str(given["feedback"]), "--state", str(world.job.state), "--cache", str(world.job.cache)]
        assert cli.main(["retrain", str(given["run"]), str(given["repository"]), *flags]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    world.feed("one", [0])
    assert "is no folder" in told(feedback=tmp_path / "nothing")
    assert "holds no version" in told(repository=tmp_path / "empty")
    manifest = world.job.repository / "levi/1/manifest.json"
    text = manifest.read_text()
    manifest.write_text(text.replace('"data_hash": "', '"data_hash": "0'))
    assert "was not made from" in told()
    manifest.write_text("{}")
    assert "not a manifest" in told()
    assert len(list(Events(world.log))) == 1


@pytest.mark.usefixtures("_quick_export")
def test_graphs_that_are_wrong(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the export finds is a gate like the others."""

    def export(*_: object) -> Path:
        raise RunError("the exported graphs differ")

    monkeypatch.setattr(retrain, "export", export)
    world.feed("one", range(0, 2400, 8))
    with pytest.raises(RunError, match="refused: golden parity: the exported graphs differ"):
        world.job.run()


@pytest.mark.usefixtures("_quick_export")
def test_every_night_goes_on_from_the_base(world: World) -> None:
    """With the events of all nights, compared with the last one's model."""
    for name, first in (("one", 0), ("two", 3)):
        world.feed(name, range(first, 2400, 8))
        report = world.job.run()
    assert report is not None
    assert report.plan.in_service == str(world.night(1) / "run")
    assert (report.plan.since, report.counts.merged) == (1, 600)
    told = json.loads((world.night(2) / "run/run.json").read_text())["options"]
    assert (told["start"], told["data"]) == (str(world.job.base), str(world.night(2) / "data"))


@pytest.mark.usefixtures("_quick_export")
def test_a_version_taken_back(world: World) -> None:
    """Whoever deletes a version has the next night compared with the one before."""
    world.feed("one", range(0, 2400, 8))
    world.job.run()
    shutil.rmtree(world.job.repository / "levi/2")
    world.feed("two", range(3, 2400, 8))
    report = world.job.run()
    assert report is not None
    assert (report.plan.version, report.plan.since, report.plan.nights) == (1, 0, (1, 2))
    assert Path(report.plan.in_service) == world.job.base
    assert isinstance(report, Report)


def test_a_base_version_without_its_run(world: World, tmp_path: Path) -> None:
    """A folder that is no run is named."""
    world.feed("one", [0])
    job = Retraining(**{**vars(world.job), "base": tmp_path})
    with pytest.raises(UsageError, match="was not made from"):
        job.run()
