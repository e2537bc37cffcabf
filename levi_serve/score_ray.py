"""Bulk scoring on a Ray cluster, part after part. Every node sees repository, input and output alike."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray

from levi_serve.bundle.commands import RunError
from levi_serve.score import Job, Part

_PATIENCE_S = 10.0
"""A cluster that has not answered by then is not there."""


def on_ray(address: str, workers: int) -> Any:
    """Runs parts on the cluster at this address, at most so many at a time; `local` starts one here for the time being.

    Raises:
        RunError: it does not answer.

    """

    def run(job: Job, parts: Sequence[Part]) -> Iterator[tuple[Part, int]]:
        _connect(address, workers)
        try:
            compute, waiting = ray.remote(num_cpus=1)(Job.compute), iter(parts)
            going = {compute.remote(job, part): part for part in islice(waiting, workers)}
            while going:
                (done,), _ = ray.wait(list(going))
                part, written = going.pop(done), ray.get(done)
                going |= {compute.remote(job, more): more for more in islice(waiting, 1)}
                yield part, written
        except ray.exceptions.RayError as error:
            raise RunError(f"--ray {address}: {str(error).splitlines()[-1]}; start the same command again") from None
        finally:
            ray.shutdown()

    return run


def _connect(address: str, workers: int) -> None:
    here = address == "local"
    if not here and address != "auto":
        _require_answer(address)
    own: dict[str, Any] = {"num_cpus": workers, "include_dashboard": False} if here else {}
    try:
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False, configure_logging=False, **own)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise RunError(f"--ray {address}: {str(error).splitlines()[0]}") from None


def _require_answer(address: str) -> None:
    """Ray itself would try for a minute and say so in many lines."""
    nobody = f"--ray {address}: no Ray cluster answers there; give the head's host:port, auto or local"
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=_PATIENCE_S).close()
    except (OSError, ValueError, OverflowError):
        raise RunError(nobody) from None
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    try:
        ended = subprocess.run(command, capture_output=True, timeout=_PATIENCE_S, check=False)  # noqa: S603 - our own
    except subprocess.TimeoutExpired:
        ended = None
    if ended is not None and b"InvalidAuthToken" in ended.stderr:
        raise RunError(
            f"--ray {address}: the cluster wants its token; set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or "
            "RAY_AUTH_TOKEN_PATH unless it lies in ~/.ray/auth_token"
        )
    if ended is None or ended.returncode:
        raise RunError(nobody)
