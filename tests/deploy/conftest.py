"""The serving tests' fixtures, for what is deployed around the server."""

from __future__ import annotations

from tests.serving.conftest import app, start_redis, toy, toy_repository

__all__ = ["app", "start_redis", "toy", "toy_repository"]
