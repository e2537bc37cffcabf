"""The command `levi-serve`."""

from __future__ import annotations

import logging
import sys

from levi_serve.app import build_app, load_version
from levi_serve.bundle.commands import Command, run
from levi_serve.live import Live
from levi_serve.metrics import Metrics
from levi_serve.server import Server
from levi_serve.settings import ModelSettings, PublishSettings, ServeSettings
from levi_serve.versions import newest


class Serve(ServeSettings):
    """Answer predictions over HTTP."""

    def __call__(self) -> None:
        """Until SIGTERM or SIGINT."""
        logging.basicConfig(
            level=self.log_level.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s"
        )
        logging.getLogger("uvicorn").setLevel(logging.WARNING)
        metrics = Metrics()
        live = Live(metrics)
        app = build_app(self, live, metrics)
        Server(app, live, self.drain_s, self.shutdown_s).listen(self.host, self.port)


class Validate(ModelSettings):
    """Check a model version as the server would before it serves it."""

    def __call__(self) -> None:
        """Print what was found."""
        version = load_version(self)
        manifest = version.manifest
        schema = manifest.schema_
        print(f"model      {manifest.name}/{manifest.version}, {manifest.views} views, {manifest.layers} heads")
        print(f"entities   {schema.user.name}, {schema.item.name}; ratings {schema.rating_min:g}–{schema.rating_max:g}")
        print(f"files      {len(manifest.files)}, every checksum as in the manifest")
        print(
            f"golden     {len(version.examples)} examples reproduced; "
            f"largest difference {version.worst:.1e} of {manifest.golden_tolerance:g} allowed"
        )


class Publish(PublishSettings):
    """Load a version's tables into Redis. Run again after a failure: it writes every row anew."""

    def __call__(self) -> None:
        """Print what was written."""
        from levi_serve.publish import Progress, publish

        number = newest(self.model_repo, self.model) if self.version == "latest" else self.version
        progress = Progress(sys.stderr)
        for done in publish(self.model_repo, self.model, number, self.redis, self.entity, self.ttl_s, progress):
            rate = done.rows / done.seconds
            print(f"{done.entity:<10} {done.rows:,} rows in {done.seconds:.1f} s, {rate:,.0f} a second")


def main() -> int:
    """Entry point; returns the exit code."""
    commands: dict[str, type[Command]] = {"serve": Serve, "validate": Validate, "publish": Publish}
    return run("levi-serve", "Serve LEVI's predictions.", commands, sys.argv[1:], default="serve")


if __name__ == "__main__":
    sys.exit(main())
