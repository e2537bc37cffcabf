"""One process that serves: the only one, or one of several, which starts here with what its parent tells it."""

from __future__ import annotations

import gc
import json
import os
import shutil
import socket
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from levi_serve import logs
from levi_serve.app import build_app
from levi_serve.bundle.commands import RunError
from levi_serve.cli import Serve
from levi_serve.guard import Token
from levi_serve.lane import Lane
from levi_serve.live import Live
from levi_serve.metrics import Metrics
from levi_serve.protocol import Protocol
from levi_serve.server import Server
from levi_serve.settings import ServeSettings
from levi_serve.turned_away import TurnedAway

_SWITCH_S = 0.0001
"""How long a thread may keep the interpreter that the event loop waits for. The loop pays it after each system call and
each run of the model while a version is loaded or a text is read beside it. The default is 5 ms."""


def serve(
    settings: ServeSettings,
    listener: socket.socket,
    metrics: Metrics,
    lifeline: int | None = None,
    replaces: bool = False,
    shared: Path | None = None,
) -> None:
    """Until a signal comes, or the `lifeline` ends. A process that `replaces` another listens when it is ready; several
    have a `shared` folder.

    Raises:
        RunError: no model can ever be served here.

    """
    sys.setswitchinterval(_SWITCH_S)
    live = Live(metrics)
    app = build_app(settings, live, metrics, replaces, shared)
    # What lives as long as the process is not looked through again and again: a whole collection would stop the event
    # loop for 50 ms, and so one can be made whenever a version has been released.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000)  # the default goes through what thousands of connections hold, many times a second
    protocol: Callable[..., Protocol] = partial(Protocol, metrics=metrics)
    if not settings.access_log:  # the lane writes none
        token = Token(settings.token.get_secret_value()) if settings.token else None
        protocol = partial(
            Lane,
            live=live,
            trial=app.state.trial,
            metrics=metrics,
            away=TurnedAway(live),
            timeout_s=settings.timeout_ms / 1000,
            max_body_bytes=settings.max_body_bytes,
            token=token,
        )
    Server(app, live, protocol, settings.drain_s, settings.shutdown_s, lifeline).serve_on(listener)


def main() -> int:
    """Serve as one of several; returns the exit code."""
    line = sys.stdin.readline()
    if not line:  # the parent is no more
        return 0
    order = json.loads(line)
    settings = Serve(_cli_parse_args=False, _env_file=None, **order["settings"])
    logs.set_up(settings.log_level, settings.log_format, order["worker"])
    shared = Path(order["shared"])
    metrics = Metrics(shared, order["worker"])
    listener = socket.socket(fileno=order["socket"])
    try:
        serve(settings, listener, metrics, sys.stdin.fileno(), order["replaces"], shared)
    except (RunError, OSError, MemoryError) as error:
        print(error, flush=True)
        return 1
    if os.getppid() != order["parent"]:  # it was killed, and left this behind
        shutil.rmtree(shared, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
