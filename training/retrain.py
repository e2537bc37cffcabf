"""The nightly job: feedback in, a model out, and a gate between the model and the traffic.

A night is a numbered folder in the state folder. Each of its steps leaves a file or folder that appears whole or not at
all, so that a night that was killed is finished by the next start, with the numbers of one that was never stopped:

    events/NNNN.events    the events that this night took out of the log; after a refusal in refused/
    nights/NNNN/plan.json the version in service, and which nights' events are merged
    nights/NNNN/data      base data and events as one dataset with a split
    nights/NNNN/run       the fit
    nights/NNNN/verdict.json, then the version in the model repository, then report.md and report.json
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError
from redis import RedisError

from levi_serve.bundle.manifest import NAME as MANIFEST
from levi_serve.bundle.manifest import Manifest
from levi_serve.bundle.redis_url import is_redis
from training.atomic import publish_folder, staged_folder
from training.checkpoint import write_json
from training.datasets import load
from training.datasets.snapshot import batches, write_snapshot
from training.entities import forget, lay, read_list
from training.errors import RunError, UsageError
from training.export import export
from training.gates import Gate, Margins, Verdict, candidate, in_service, judge
from training.intake import Taken, log_at, take
from training.merge import Counts, merge
from training.model import SIZES, FactorSize
from training.night import PLAN, REPORT, Plan, Report, read_plan, read_report
from training.options import Device, Options
from training.retrain_report import write_report
from training.run import RECORD, Record, Run, fit, open_run
from training.splits import split

PARITY_PAIRS = 256


@dataclass(frozen=True)
class Retraining:
    """What the job is given."""

    base: Path
    """A finished run: its data and its options are where every night begins."""
    repository: Path
    name: str
    log: str
    """The servers' feedback log: a folder or a Redis URL."""
    entities: str | None
    """Their list of entities: a file or a Redis URL."""
    state: Path
    cache: Path
    device: Device
    data: Path | None
    """Where the base run's data lies now, if it was moved."""
    margins: Margins
    epochs: int
    learning_rate: float
    warm: bool
    """Whether a fit goes on from the base run's model."""

    def run(self) -> Report | None:
        """Finish the night that was begun, or begin the next one; None if there is nothing new to learn.

        Raises:
            UsageError: the base run or the repository's newest version is not what the nights began with.
            RunError: another one runs; or the new model is refused.

        """
        if not is_redis(self.log) and not Path(self.log).is_dir():
            raise UsageError(f"--feedback {self.log}: is no folder; the server makes it with its first event")
        with _alone(self.state):
            for folder in ("events", "refused", "nights"):
                (self.state / folder).mkdir(exist_ok=True)
            nights = sorted(int(path.name) for path in (self.state / "nights").iterdir() if path.name.isdecimal())
            night = nights[-1] if nights else 0
            if not nights or (self._folder(night) / REPORT).exists():
                night += 1
            report = self._night(night)
        if report is not None and report.version is None:
            told = f"version {report.plan.version} goes on; see {self._folder(night) / 'report.md'}"
            raise RunError(f"night {night} is refused: {report.verdict.reasons}; {told}")
        return report

    def _folder(self, night: int) -> Path:
        return self.state / "nights" / f"{night:04}"

    def _events(self, night: int, where: str = "events") -> Path:
        return self.state / where / f"{night:04}.events"

    def _night(self, night: int) -> Report | None:
        folder = self._folder(night)
        plan = self._plan(night)
        if plan is None:
            return None
        counts = self._merged(folder, plan)
        record = self._fitted(folder)
        run = open_run(folder / "run", self.cache, "cpu")
        verdict = self._judged(folder, run, plan)
        version = None
        if verdict.passed:
            version, verdict = self._promoted(run, verdict)
        if version is None and self._events(night).exists():
            self._events(night).rename(self._events(night, "refused"))
        report = Report(
            night=night,
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            plan=plan,
            counts=counts,
            verdict=verdict,
            version=version,
            fit_seconds=record.seconds,
        )
        write_report(folder, report, [read_report(path.parent) for path in sorted(folder.parent.glob(f"*/{REPORT}"))])
        write_json(folder / REPORT, report.model_dump(mode="json"))
        return report

    def _plan(self, night: int) -> Plan | None:
        """The night's plan, made once: events are taken before anything is computed."""
        path = self._folder(night) / PLAN
        if path.exists():
            return read_plan(path.parent)
        served, version = self._in_service()
        mine = self._events(night)
        taken = _batch(mine) if mine.exists() else self._take(mine)
        if not taken.events:
            mine.unlink()
            return None
        nights = tuple(sorted(int(one.stem) for one in (self.state / "events").glob("*.events")))
        since = 0 if served == self.base else read_plan(served.parent).nights[-1]
        plan = Plan(taken=taken, in_service=str(served), version=version, since=since, nights=nights)
        path.parent.mkdir(exist_ok=True)
        write_json(path, plan.model_dump(mode="json"))
        return plan

    def _take(self, batch: Path) -> Taken:
        earlier = sorted((self.state / "events").glob("*.events")) + sorted((self.state / "refused").glob("*.events"))
        try:
            return take(log_at(self.log, self.name), earlier, batch)
        except RedisError as error:
            raise RunError(f"--feedback: Redis cannot be read: {' '.join(str(error).split())}") from None

    def _in_service(self) -> tuple[Path, int]:
        """The run that the repository's newest version was made from, and the version."""
        found = _newest(self.repository, self.name)
        if found is None:
            raise UsageError(
                f"{self.repository / self.name}: holds no version; "
                f"levi-train export {self.base} {self.repository} makes the first"
            )
        for folder in (self.base, *sorted(self.state.glob("nights/*/run"), reverse=True)):
            if (folder / RECORD).exists() and _made_from(found, _record(folder)):
                return folder, found.version
        folder = self.repository / self.name / str(found.version)
        raise UsageError(f"{folder}: was not made from {self.base} or a night in {self.state}")

    def _merged(self, folder: Path, plan: Plan) -> Counts:
        counts = folder / "counts.json"
        if not (folder / "data").exists():
            options = _record(self.base).options
            base = load(options.dataset, self.data or options.data)
            if base.more is not None:
                raise UsageError(f"{self.base}: its ratings are streamed from a file, feedback is merged in memory")
            listed = read_list(self.entities, self.name, base.schema)
            forget([path for where in ("events", "refused") for path in (self.state / where).glob("*.events")], listed)
            base, parts = lay(base, split(base, options.seed), listed)
            merged = merge(base, parts, {night: self._events(night) for night in plan.nights})
            write_json(counts, merged.counts.model_dump(mode="json"))
            with staged_folder(folder, "data") as staged:
                write_snapshot(staged, merged.dataset, merged.batch)
                publish_folder(staged, folder / "data")
        return Counts.model_validate_json(counts.read_bytes())

    def _fitted(self, folder: Path) -> Record:
        """As the base run, but on the night's data, and from what the base run has come to: epochs of many nights would
        add up, and every night has all events anyway.
        """
        base = _record(self.base).options
        changes: dict[str, object] = {"dataset": "snapshot", "data": folder / "data"}
        if self.warm and not isinstance(SIZES[base.size], FactorSize):
            told = {"start": self.base, "epochs": self.epochs, "learning_rate": (self.learning_rate,)}
            changes |= {**told, "select": "random"}
        return fit(Options(**{**dict(base), **changes}), folder / "run", self.cache, self.device)

    def _judged(self, folder: Path, run: Run, plan: Plan) -> Verdict:
        path = folder / "verdict.json"
        if not path.exists():
            served = Path(plan.in_service)
            old = open_run(served, self.cache, "cpu", self.data if served == self.base else None)
            batch = batches(folder / "data")
            verdict = judge(in_service(old, run.dataset, self.cache), candidate(run), batch, plan.since, self.margins)
            write_json(path, verdict.model_dump(mode="json"))
        return Verdict.model_validate_json(path.read_bytes())

    def _promoted(self, run: Run, verdict: Verdict) -> tuple[int | None, Verdict]:
        """Export, unless a night that was killed has done so; what the graphs get wrong is the last gate."""
        found = _newest(self.repository, self.name)
        if found is not None and _made_from(found, run.record):
            return found.version, verdict
        try:
            return int(export(run, self.repository, self.name, PARITY_PAIRS).name), verdict
        except RunError as error:
            gate = Gate(name="golden parity", passed=False, says=str(error))
            return None, Verdict(slices=verdict.slices, gates=[*verdict.gates, gate])


@contextmanager
def _alone(state: Path) -> Iterator[None]:
    """Hold the state folder's lock; the system lets it go with the process, however that ends.

    Raises:
        RunError: another process holds it.

    """
    state.mkdir(parents=True, exist_ok=True)
    with (state / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise RunError(f"{state}: another retraining runs here (process {file.read().strip() or '?'})") from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _batch(path: Path) -> Taken:
    """What is left to say of a batch that an earlier attempt took."""
    with path.open("rb") as lines:
        return Taken(events=sum(1 for _ in lines))


def _newest(repository: Path, name: str) -> Manifest | None:
    numbers = [int(path.name) for path in (repository / name).glob("[1-9]*") if path.name.isdecimal()]
    if not numbers:
        return None
    path = repository / name / str(max(numbers)) / MANIFEST
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise UsageError(f"{path}: not a manifest ({' '.join(str(error).split())})") from None


def _made_from(manifest: Manifest, record: Record) -> bool:
    return (manifest.run["data_hash"], manifest.run["fitted"]) == (record.data_hash, record.finished)


def _record(folder: Path) -> Record:
    try:
        return Record.model_validate_json((folder / RECORD).read_bytes())
    except (OSError, ValidationError):
        raise UsageError(f"{folder}: holds no finished run") from None
