"""The command `levi-serve`."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from typing import TYPE_CHECKING

from levi_serve import logs
from levi_serve.bundle.commands import Command, run
from levi_serve.listener import bind, listen, url
from levi_serve.settings import ModelSettings, PublishSettings, ServeSettings, masked, open_secrets

if TYPE_CHECKING:
    from levi_serve.live import Service

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
        from levi_serve.versions import newest

        number = newest(self.model_repo, self.model) if self.version == "latest" else self.version
        service = await bring_up(Serve(_cli_parse_args=False, **self.model_dump()), Metrics(), number)
        await service.close()
        return service


class Publish(PublishSettings):
    """Load a version's tables into Redis. Run again after a failure: it writes every row anew."""

    def __call__(self) -> None:
        """Print what was written."""
        from levi_serve.publish import Progress, publish
        from levi_serve.versions import newest

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
