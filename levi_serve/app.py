"""The composition root: settings in, application out."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from levi_serve.backends.onnx import DeviceError
from levi_serve.bundle.manifest import BundleError
from levi_serve.cores import usable_cores
from levi_serve.engine import Engine, EntityEngine, Limits, PairEngine
from levi_serve.live import Live, Service
from levi_serve.metrics import Metrics
from levi_serve.observer import Observer
from levi_serve.page.router import build_page
from levi_serve.predictor import PairReader
from levi_serve.problems import handle_problems, problem_schemas
from levi_serve.proof import prove
from levi_serve.routes import build_router, methods_by_path
from levi_serve.settings import ServeSettings
from levi_serve.store import TableStore
from levi_serve.versions import Version, load, newest
from levi_serve.wire import Wire

log = logging.getLogger("levi")

API_VERSION = "1"
"""Of the HTTP interface, not of the program or the model."""


def build_app(settings: ServeSettings, live: Live, metrics: Metrics) -> FastAPI:
    """The application. It starts at once and loads its model meanwhile; one that cannot be used leaves it up, not
    ready, and able to say why.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        loading = asyncio.create_task(_load(settings, live, metrics))
        yield
        loading.cancel()
        with suppress(asyncio.CancelledError):
            await loading
        if live.service:
            await live.service.engine.close()

    app = FastAPI(
        title="LEVI Serve",
        version=API_VERSION,
        lifespan=lifespan,
        redirect_slashes=False,
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
    )
    router = build_router(live, metrics, settings.model, settings.max_body_bytes, settings.timeout_ms / 1000)
    app.include_router(router)
    app.include_router(build_page())
    app.add_middleware(Observer, live=live, metrics=metrics)
    handle_problems(app, methods_by_path(router), metrics.problem)
    app.openapi = lambda: _openapi(app, live)  # type: ignore[method-assign]
    return app


async def bring_up(settings: ServeSettings, metrics: Metrics) -> Service:
    """The version that the settings name, opened, and proven through its own engine.

    Raises:
        BundleError: it cannot be used.
        DeviceError: the device is not there.

    """
    number = newest(settings.model_repo, settings.model) if settings.version == "latest" else settings.version
    threads = settings.threads or usable_cores()
    version = await asyncio.to_thread(load, settings.model_repo, settings.model, number, settings.device, threads)
    wire = Wire(version.manifest, version.examples[0], settings.max_pairs)
    engine = _engine(version, wire, settings, metrics)
    try:
        return Service(version, engine, wire, await prove(version, engine))
    except BaseException:
        await engine.close()
        raise


def _engine(version: Version, wire: Wire, settings: ServeSettings, metrics: Metrics) -> Engine:
    limits = Limits(settings.max_batch, settings.max_tokens, settings.encode_batch, settings.max_queue)
    store = TableStore(*version.tables)
    if version.encoder is not None:
        return EntityEngine(store, wire, limits, metrics, version.predictor, version.encoder)
    reader = PairReader(version.manifest, version.tokenizer)
    return PairEngine(store, wire, limits, metrics, version.predictor, reader, version.unknown)


async def _load(settings: ServeSettings, live: Live, metrics: Metrics) -> None:
    start = time.perf_counter()
    try:
        service = await bring_up(settings, metrics)
    except BundleError as error:
        live.fail(str(error))
        log.error("not ready: %s", error)  # noqa: TRY400 - the message is all there is to know
    except DeviceError as error:
        live.give_up(error)
    except Exception as error:
        live.fail(f"loading the model failed: {error}")
        log.exception("not ready")
    else:
        live.start(service)
        took = time.perf_counter() - start
        manifest = service.version.manifest
        log.info("ready: %s/%d, loaded in %.1f s", manifest.name, manifest.version, took)


def _openapi(app: FastAPI, live: Live) -> dict[str, Any]:
    """The document for the schema of the model in service; built anew, since the model may change."""
    document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    document["components"]["schemas"].update(problem_schemas())
    if live.service:
        live.service.wire.describe(document)
    return document
