"""The command `levi-serve`."""

from __future__ import annotations

import asyncio
import logging
import sys

from levi_serve.app import bring_up, build_app
from levi_serve.bundle.commands import Command, run
from levi_serve.live import Live, Service
from levi_serve.metrics import Metrics
from levi_serve.server import Server
from levi_serve.settings import ModelSettings, ServeSettings


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
        Server(app, live, metrics, self.timeout_ms / 1000, self.drain_s, self.shutdown_s).listen(self.host, self.port)


class Validate(ModelSettings):
    """Check a model version as the server would before it serves it."""

    def __call__(self) -> None:
        """Print what was found."""
        service = asyncio.run(_proven(self))
        version, manifest = service.version, service.version.manifest
        schema = manifest.schema_
        print(f"model      {manifest.name}/{manifest.version}, {manifest.views} views, {manifest.layers} heads")
        print(f"entities   {schema.user.name}, {schema.item.name}; ratings {schema.rating_min:g}–{schema.rating_max:g}")
        print(f"files      {len(manifest.files)}, every checksum as in the manifest")
        print(
            f"golden     {len(version.golden)} examples reproduced; "
            f"largest difference {service.golden_difference:.1e} of {manifest.golden_tolerance:g} allowed"
        )


async def _proven(settings: ModelSettings) -> Service:
    service = await bring_up(Serve(_cli_parse_args=False, **settings.model_dump()), Metrics())
    await service.engine.close()
    return service


def main() -> int:
    """Entry point; returns the exit code."""
    commands: dict[str, type[Command]] = {"serve": Serve, "validate": Validate}
    return run("levi-serve", "Serve LEVI's predictions.", commands, sys.argv[1:], default="serve")


if __name__ == "__main__":
    sys.exit(main())
