"""Several workers behind one port. A parent that loads no model starts them, replaces those that die, and ends them.

Each worker listens on a socket of its own with the same address, and the kernel spreads connections over them by their
hash. (One socket for all was tried: whichever worker wakes first takes most connections, 15 of 16 on an idle machine,
and keeps them.) A worker's socket dies with it, so that new connections go to the others until its successor is ready.

A worker's standard input is its lifeline. The first line says what to do. Its end says that the parent has stopped,
whether it closed it or was killed: the worker then drains and exits, and no orphan is left. Its standard output is for
one thing: why it can never serve.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import sys
import tempfile
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from levi_serve.bundle.commands import RunError
from levi_serve.listener import bind, listen, url
from levi_serve.metrics import forget_worker

log = logging.getLogger("levi")

_STEADY_S = 10.0
"""A worker that dies sooner, twice in a row, is replaced after a pause."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0


class Workers:
    """The parent."""

    def __init__(self, address: socket.socket, count: int, settings: Mapping[str, Any], patience_s: float) -> None:
        """`address` is bound and does not listen: it keeps the port, and another server out of it. Workers that have
        not ended `patience_s` after they were told to are killed.
        """
        self._address = address
        self._count = count
        self._settings = settings
        self._patience_s = patience_s
        self._ending = asyncio.Event()
        self._processes: dict[int, Process] = {}

    def run(self) -> None:
        """Until SIGTERM or SIGINT; a second one kills the workers.

        Raises:
            RunError: no worker can ever serve here.

        """
        with tempfile.TemporaryDirectory(prefix="levi-metrics-") as shared:
            self._shared = Path(shared)
            asyncio.run(self._run())

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signal)
        sockets = [self._socket() for _ in range(self._count)]
        for listener in sockets:
            listen(listener)
        log.info("listening on %s", url(self._address))
        keepers = [asyncio.create_task(self._keep(worker, listener)) for worker, listener in enumerate(sockets)]
        await asyncio.wait(keepers, return_when=asyncio.FIRST_EXCEPTION)
        self._end()
        for outcome in await asyncio.gather(*keepers, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome

    async def _keep(self, worker: int, listener: socket.socket | None) -> None:
        """Have this worker running until the end. The first one listens from the start, so that clients learn that the
        model is being loaded; one that replaces another does when it is ready.
        """
        quick = 0  # deaths in a row that came soon after the start
        while not self._ending.is_set():
            began = time.monotonic()
            try:
                outcome = await self._live(worker, listener or self._socket(), replaces=listener is None)
            except (RunError, OSError) as error:
                if listener is not None:
                    raise
                outcome = f"cannot serve: {error}"
            if self._ending.is_set():
                return
            listener = None
            quick = quick + 1 if time.monotonic() - began < _STEADY_S else 0
            pause = 0.0 if quick < 2 else min(_FIRST_PAUSE_S * 2 ** (quick - 2), _LONGEST_PAUSE_S)
            log.error("worker %d %s; the next one starts in %g s", worker, outcome, pause)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), pause)

    async def _live(self, worker: int, listener: socket.socket, replaces: bool) -> str:
        """One worker's life; returns how it ended.

        Raises:
            RunError: it says that it can never serve.

        """
        order = {
            "settings": self._settings,
            "worker": worker,
            "socket": listener.fileno(),
            "shared": str(self._shared),
            "parent": os.getpid(),
            "replaces": replaces,
        }
        # In a process group of its own: a terminal's Ctrl-C is for the parent, which passes it on.
        with listener:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, *(f"-W{option}" for option in sys.warnoptions), "-m", "levi_serve.worker"),
                stdin=PIPE,
                stdout=PIPE,
                pass_fds=(listener.fileno(),),
                process_group=0,
            )
        log.info("worker %d is process %d", worker, process.pid)
        assert process.stdin is not None
        assert process.stdout is not None
        self._processes[worker] = process
        process.stdin.write(json.dumps(order).encode() + b"\n")
        if self._ending.is_set():
            process.stdin.close()
        reason = (await process.stdout.read()).decode(errors="replace").strip()
        code = await process.wait()
        process.stdin.close()
        forget_worker(self._shared, worker)
        if reason:
            raise RunError(reason)
        return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"

    def _socket(self) -> socket.socket:
        host, port = self._address.getsockname()[:2]
        return bind(host, port, share=True)

    def _signal(self) -> None:
        if self._ending.is_set():
            self._kill()
        self._end()

    def _end(self) -> None:
        """Tell all workers to drain."""
        if not self._ending.is_set():
            log.info("stopping %d workers", self._count)
            self._ending.set()
            asyncio.get_running_loop().call_later(self._patience_s, self._kill)
        for process in self._processes.values():
            if process.stdin is not None:
                process.stdin.close()

    def _kill(self) -> None:
        """End the waiting."""
        for worker, process in self._processes.items():
            if process.returncode is None:
                log.error("worker %d is killed before it has answered everything", worker)
                process.kill()
