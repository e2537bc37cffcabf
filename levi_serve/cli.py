"""The command `levi-serve`."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from typing import TYPE_CHECKING

from levi_serve import logs
from levi_serve.bundle.commands import Command, RunError, UsageError, run
from levi_serve.listener import bind, listen, url
from levi_serve.settings import (
    BundleSettings,
    ModelSettings,
    PublishSettings,
    ReplaySettings,
    ReplicasSettings,
    ScoreSettings,
    ServeSettings,
    masked,
    open_secrets,
)

if TYPE_CHECKING:
    from levi_serve.live import Service
    from levi_serve.replay import Replay as Replayed

log = logging.getLogger("levi")

_PATIENCE_S = 10
"""What a worker gets beyond the times that the settings give it."""


class Serve(ServeSettings):
    """Answer predictions over HTTP."""

    def __call__(self) -> None:
        """Until SIGTERM or SIGINT."""
        logs.set_up(self.log_level, self.log_format)
        with bind(self.host, self.port) as address:
            if self.workers == 1:
                listen(address)
            log.info("settings", extra={"fields": {"settings": masked(self)}})
            if self.workers == 1:
                self._alone(address)
            else:
                from levi_serve.workers import Workers

                patience_s = self.drain_s + self.shutdown_s + _PATIENCE_S
                Workers(address, self.workers, open_secrets(self), patience_s).run()

    def _alone(self, listener: socket.socket) -> None:
        from levi_serve.metrics import Metrics
        from levi_serve.worker import serve

        log.info("listening on %s", url(listener))
        serve(self, listener, Metrics())


class Validate(ModelSettings):
    """Check a model version as the server would before it serves it."""

    def __call__(self) -> None:
        """Print what was found."""
        service = asyncio.run(self._proven())
        version, manifest = service.version, service.version.manifest
        schema = manifest.schema_
        print(f"model      {manifest.name}/{manifest.version}, {manifest.views} views, {manifest.layers} heads")
        print(f"entities   {schema.user.name}, {schema.item.name}; ratings {schema.rating_min:g}–{schema.rating_max:g}")
        print(f"files      {len(manifest.files)}, every checksum as in the manifest")
        print(
            f"golden     {len(version.golden)} examples reproduced; "
            f"largest difference {service.golden_difference:.1e} of {manifest.golden_tolerance:g} allowed"
        )

    async def _proven(self) -> Service:
        from levi_serve.app import bring_up
        from levi_serve.metrics import Metrics

        serve = Serve(_cli_parse_args=False, monitor=False, **self.model_dump())
        service = await bring_up(serve, Metrics(), _number(self))
        await service.close()
        return service


class Publish(PublishSettings):
    """Load a version's tables into Redis. Run again after a failure: it writes every row anew."""

    def __call__(self) -> None:
        """Print what was written."""
        from levi_serve.publish import Progress, publish

        number = _number(self)
        progress = Progress(sys.stderr)
        for done in publish(self.model_repo, self.model, number, self.redis, self.entity, self.ttl_s, progress):
            rate = done.rows / done.seconds
            print(f"{done.entity:<10} {done.rows:,} rows in {done.seconds:.1f} s, {rate:,.0f} a second")


class Score(ScoreSettings):
    """Rate a Parquet file of pairs, or find the best items of all users. Run again after a kill, it goes on."""

    def __call__(self) -> None:
        """Print how much and how fast."""
        import time

        from levi_serve.cores import usable_cores
        from levi_serve.publish import Progress

        try:
            from levi_serve.score import Job, on_this_machine, score

            run = on_this_machine(self.processes or usable_cores())
            if self.ray is not None:
                from levi_serve.score_ray import on_ray

                run = on_ray(self.ray, self.processes or 2)
        except ImportError as error:
            extra = "ray" if self.ray else "score"
            raise UsageError(f"{error.name} is not installed: pip install 'levi-serve[{extra}]'") from None
        job = Job(
            self.model_repo.resolve(), self.model, _number(self), self.out.resolve(), self.top_k, self.exclude_rated
        )
        began = time.perf_counter()
        rows = score(job, self.pairs, run, Progress(sys.stderr))
        print(f"{self.out}: {rows:,} {'users' if self.top_k else 'pairs'} in {time.perf_counter() - began:.1f} s")


class Replay(ReplaySettings):
    """Show what the shift monitor would have said of a file of requests."""

    def __call__(self) -> None:
        """Print a table, and draw it."""
        from levi_serve.replay import check_plot, drawing, table

        if self.plot is not None:
            check_plot(self.plot)
        found = asyncio.run(self._replayed())
        print(table(found))
        if self.plot is not None:
            self.plot.write_text(drawing(found), encoding="utf-8")

    async def _replayed(self) -> Replayed:
        from levi_serve.app import bring_up
        from levi_serve.metrics import Metrics
        from levi_serve.monitor.detector import Detector
        from levi_serve.monitor.streams import threshold
        from levi_serve.replay import read_requests, replay

        model = self.model_dump(include=set(ModelSettings.model_fields))
        service = await bring_up(Serve(_cli_parse_args=False, monitor=False, **model), Metrics(), _number(self))
        try:
            requests = read_requests(self.file, service.version.manifest.schema_)
            detector = Detector.of(service.version.reference, threshold(self.monitor_days, self.monitor_rate))
            return await replay(service.version, service.engine, detector, requests)
        finally:
            await service.close()


class Monitor(ReplicasSettings):
    """Watch several servers as one: the shift monitor over the sum of what they count. Ends with code 1 at an alarm."""

    def __call__(self) -> None:
        """Until an alarm, or SIGINT."""
        import time

        from levi_serve.monitor.detector import Detector
        from levi_serve.monitor.state import State, owner_of, require_state
        from levi_serve.monitor.streams import threshold
        from levi_serve.replicas import Replicas, read_metrics
        from levi_serve.versions import read_version_reference

        number = _number(self)
        reference = read_version_reference(self.model_repo, self.model, number)
        detector = Detector.of(reference, threshold(self.monitor_days, self.monitor_rate))
        if self.state is not None:
            require_state(self.state)
        state = State(detector, owner_of(reference, detector), self.state)
        replicas = Replicas(detector.streams, self.model, number)
        token = self.token.get_secret_value() if self.token else None
        left_out: dict[str, str] = {}
        while True:
            block, missing = replicas.added(read_metrics(self.url, token, self.every_s))
            for server, why in missing.items():
                if left_out.get(server) != why:
                    print(f"{server} is left out: {why}", file=sys.stderr, flush=True)
            left_out = missing
            with state.change() as record:
                if block.any():
                    detector.apply(record, block[..., None], time.time())
                alarms = detector.alarms(record) if record["active"] else []
                evidence = detector.total(record)
                if alarms:
                    detector.acknowledge(record, int(record["active"]), time.time())
            if block.any():
                print(
                    f"{int(block[0].sum())} predictions, evidence {evidence:.2f} of {detector.threshold:.2f}",
                    flush=True,
                )
            if alarms:
                one, stream = alarms[-1]
                raise RunError(f"shift alarm: {stream.score} {stream.kind}, evidence {one['evidence']:.1f}")
            time.sleep(self.every_s)


def _number(wanted: BundleSettings) -> int:
    """The one version that a command is about."""
    from levi_serve.versions import newest

    return newest(wanted.model_repo, wanted.model) if wanted.version == "latest" else wanted.version


def main() -> int:
    """Entry point; returns the exit code."""
    commands: dict[str, type[Command]] = {"serve": Serve, "validate": Validate, "publish": Publish}
    commands |= {"score": Score, "replay": Replay, "monitor": Monitor}
    return run("levi-serve", "Serve LEVI's predictions.", commands, sys.argv[1:], default="serve")


if __name__ == "__main__":
    sys.exit(main())
