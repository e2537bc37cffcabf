"""The composition root: settings in, application out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi

from levi_serve.bundle.commands import RunError
from levi_serve.bundle.entities import open_entities
from levi_serve.bundle.keys import Keys
from levi_serve.bundle.redis_url import is_redis
from levi_serve.cache import RowCache
from levi_serve.cores import lower_priority, usable_cores
from levi_serve.engine import Engine, Limits
from levi_serve.engine_entity import EntityEngine
from levi_serve.engine_pair import PairEngine
from levi_serve.entities import Entities
from levi_serve.errors import BackendError, EntitiesError
from levi_serve.feedback import Feedback, FolderLog
from levi_serve.guard import Guard, Token, describe_guard
from levi_serve.live import Live, Service
from levi_serve.metrics import Metrics
from levi_serve.metrics_fleet import FleetMetrics
from levi_serve.monitor.detector import Detector
from levi_serve.monitor.streams import threshold
from levi_serve.monitor.watch import Monitor, state_file
from levi_serve.observer import Observer
from levi_serve.overlay import Overlay
from levi_serve.page.router import build_page
from levi_serve.predictor import PairReader
from levi_serve.problems import handle_problems, problem_schemas
from levi_serve.proof import prove
from levi_serve.recommend import Recommender
from levi_serve.repository import Policy
from levi_serve.rollout import Rollout
from levi_serve.routes import build_router, methods_by_path
from levi_serve.routes_entities import build_entities_router
from levi_serve.routes_feedback import build_feedback_router
from levi_serve.routes_inference import build_inference_router
from levi_serve.routes_monitor import build_monitor_router
from levi_serve.routes_recommend import build_recommend_router
from levi_serve.routes_repository import build_repository_router
from levi_serve.settings import ServeSettings
from levi_serve.store import Store, TableStore
from levi_serve.trial import Trial
from levi_serve.versions import Version, load
from levi_serve.wire import Wire
from levi_serve.wire_recommend import RecommendWire
from levi_serve.wishes import Wishes, WishList

log = logging.getLogger("levi")

API_VERSION = "1"
"""Of the HTTP interface, not of the program or the model."""


def build_app(
    settings: ServeSettings, live: Live, metrics: Metrics, replaces: bool = False, shared: Path | None = None
) -> FastAPI:
    """The application. It starts at once and loads its model meanwhile; one that cannot be used leaves it up, not
    ready, and able to say why. One that `replaces` another while others serve starts when it is ready, or not at all.
    Workers of one server have a folder that they have `shared`.
    """
    trial = Trial(live, settings.canary_share, settings.shadow_share, metrics.fleet)
    entities, feedback = _entities(settings, metrics.fleet), _feedback(settings, metrics)
    admin = Token(settings.admin_token.get_secret_value()) if settings.admin_token else None
    wishes = WishList(Wishes(stable=settings.stable, canary=settings.canary), shared)
    policy = Policy.parse(settings.version)
    rollout = Rollout(
        live,
        metrics,
        settings.model_repo,
        settings.model,
        policy,
        wishes,
        partial(bring_up, settings, metrics, entities=entities),
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        loading = asyncio.create_task(_first(rollout, live))
        if replaces:
            await loading
            if live.service is None:
                live.give_up(RunError(live.reason))
        tasks = [loading, asyncio.create_task(rollout.run(settings.watch_s))]
        if feedback is not None:
            tasks.append(asyncio.create_task(feedback.watch()))
        if entities is not None:
            tasks.append(asyncio.create_task(entities.watch(partial(live.follow, entities))))
        yield
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await trial.close()
        await live.close()
        if feedback is not None:
            await feedback.close()
        if entities is not None:
            entities.close()
        wishes.close()

    app = FastAPI(
        title="LEVI Serve",
        version=API_VERSION,
        lifespan=lifespan,
        redirect_slashes=False,
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
    )
    router = _router(settings, live, metrics, rollout, trial, feedback, entities, admin)
    app.include_router(router)
    app.include_router(build_page())
    if settings.token:
        tokens = [Token(settings.token.get_secret_value()), *([admin] if admin else [])]
        app.add_middleware(Guard, tokens=tokens, count=metrics.problem)
    app.add_middleware(Observer, live=live, metrics=metrics, access_log=settings.access_log)
    handle_problems(app, methods_by_path(router), metrics.problem)
    app.state.rollout, app.state.trial = rollout, trial
    app.openapi = lambda: _openapi(app, live, settings.token is not None)  # type: ignore[method-assign]
    return app


async def bring_up(
    settings: ServeSettings,
    metrics: Metrics,
    number: int,
    beside: Service | None = None,
    entities: Entities | None = None,
) -> Service:
    """A version, opened beside the one in service, and proven through its own engine; then it learns of `entities`.

    Raises:
        BundleError: it cannot be used.
        BackendError: its encoder does not answer.
        DeviceError: the device is not there.

    """
    thread = ThreadPoolExecutor(1, thread_name_prefix="load", initializer=lower_priority)
    aside = partial(asyncio.get_running_loop().run_in_executor, thread)
    try:
        version, wire, lists = await aside(_open, settings, metrics, number, beside)
        async with AsyncExitStack() as undo:
            undo.callback(version.close)
            store = await _store(version, settings, metrics)
            overlay = Overlay(store, version.manifest, version.tables, version.unknown)
            engine = _engine(version, overlay, wire, settings, metrics)
            undo.push_async_callback(engine.close)
            difference = await prove(version, engine)
            if entities is not None:
                with suppress(EntitiesError):  # tried again and again, and then told in the log
                    await entities.look()
                if not await overlay.follow(entities, engine.row):
                    raise BackendError("the entities that were put cannot be encoded at the moment")
            monitor = await aside(_monitor, version, settings, metrics)
            undo.pop_all()
    finally:
        thread.shutdown(wait=False)
    if monitor is not None:
        engine.watch(monitor)  # only now: golden examples are no traffic
    return Service(version, engine, wire, lists, overlay, difference, monitor)


def _open(
    settings: ServeSettings, metrics: Metrics, number: int, beside: Service | None
) -> tuple[Version, Wire, RecommendWire]:
    """A version's parts that take time. Types of the same schema are not made again."""
    threads = settings.threads or max(1, usable_cores() // settings.workers)
    repository, old = settings.model_repo, beside.version if beside else None
    remote = None
    if settings.backend == "triton":
        from levi_serve.backends.triton import TritonGraph  # noqa: PLC0415 - an extra that most servers do without

        remote = partial(
            TritonGraph,
            url=settings.triton_url,
            timeout_s=settings.triton_timeout_ms / 1000,
            count=metrics.fleet.triton,
        )
    version = load(
        repository,
        settings.model,
        number,
        settings.device,
        threads,
        settings.remote_only,
        old,
        remote,
        settings.triton_fallback,
    )
    told = version.manifest, version.examples[0]
    wire = (beside and beside.wire.again(*told)) or Wire(*told, settings.max_pairs)
    lists = (beside and beside.lists.again(*told)) or RecommendWire(*told, settings.max_k, settings.max_pairs)
    return version, wire, lists


def _monitor(version: Version, settings: ServeSettings, metrics: Metrics) -> Monitor | None:
    """What watches this version; workers of one server share its state."""
    if not settings.monitor:
        return None
    folder = settings.monitor_state or metrics.shared
    path = None if folder is None else state_file(folder, version.manifest, version.reference)
    detector = Detector.of(version.reference, threshold(settings.monitor_days, settings.monitor_rate))
    return Monitor(version.reference, detector, path, rate=settings.monitor_rate / settings.workers)


async def _store(version: Version, settings: ServeSettings, metrics: Metrics) -> Store:
    """The version's own tables; with Redis, what it has comes first."""
    width, cache_bytes = version.manifest.layout.width, settings.cache_mib << 20
    users, items = version.tables
    if settings.redis is None:
        assert users is not None and items is not None  # noqa: PT018 - `remote_only` needs Redis: the settings see to it
        return TableStore(users, items, RowCache(width, cache_bytes, 1))
    from levi_serve.remote import Remote  # noqa: PLC0415 - importing Redis takes 0.1 s, and most servers need none
    from levi_serve.tiers import SPACES, TieredStore  # noqa: PLC0415

    remote = Remote(settings.redis, settings.redis_timeout_ms / 1000, metrics.redis_call)
    await remote.start()
    remote.closed = metrics.watch_redis(
        lambda: {"call": remote.failures, "write": remote.write_failures, "dropped": remote.writes_dropped},
        lambda: remote.available,
    )
    cache = RowCache(width, cache_bytes, SPACES)
    keys = Keys(version.manifest)
    return TieredStore(keys, (users, items), version.unknown, remote, cache, settings.absent_s, settings.redis_ttl_s)


def _engine(version: Version, store: Overlay, wire: Wire, settings: ServeSettings, metrics: Metrics) -> Engine:
    limits = Limits(
        settings.max_batch,
        settings.max_tokens,
        settings.encode_batch,
        settings.max_queue,
        settings.on_missing,
        one_core=usable_cores() <= settings.workers,
    )
    if version.encoder is not None:
        users, items = version.tables
        recommender = None
        if items is not None:
            recommender = Recommender(version.predictor, items, users, version.rated, store.additions)
        return EntityEngine(store, wire, limits, metrics, version.predictor, version.encoder, recommender)
    reader = PairReader(version.manifest, version.tokenizer)
    return PairEngine(store, wire, limits, metrics, version.predictor, reader, version.unknown)


def _router(
    settings: ServeSettings,
    live: Live,
    metrics: Metrics,
    rollout: Rollout,
    trial: Trial,
    feedback: Feedback | None,
    entities: Entities | None,
    admin: Token | None,
) -> APIRouter:
    """All endpoints but the page."""
    name, limits = settings.model, (settings.max_body_bytes, settings.timeout_ms / 1000)
    router = build_router(live, trial, metrics, name, *limits)
    router.include_router(build_recommend_router(live, trial, *limits))
    router.include_router(build_monitor_router(live, settings.monitor_days, settings.monitor_rate))
    router.include_router(build_feedback_router(live, trial, feedback, *limits))
    router.include_router(build_entities_router(live, entities, feedback, admin, *limits))
    router.include_router(build_inference_router(live, name, limits[0], settings.max_pairs, limits[1]))
    router.include_router(build_repository_router(live, rollout, name, admin, limits[0]))
    return router


def _feedback(settings: ServeSettings, metrics: Metrics) -> Feedback | None:
    """The way into the feedback log, if there is to be one."""
    place, max_bytes = settings.feedback, settings.feedback_max_mib << 20
    if place is None:
        return None
    if not is_redis(place):
        return Feedback(FolderLog(Path(place), max_bytes), settings.max_queue, metrics)
    from levi_serve.stream import StreamLog  # noqa: PLC0415 - importing Redis takes 0.1 s, and most servers need none

    return Feedback(StreamLog(place, settings.model, max_bytes), settings.max_queue, metrics)


def _entities(settings: ServeSettings, metrics: FleetMetrics) -> Entities | None:
    """The copy of the list of entities, if there is to be one."""
    if settings.entities is None:
        return None
    return Entities(open_entities(settings.entities, settings.model), settings.entities_max, metrics)


async def _first(rollout: Rollout, live: Live) -> None:
    """The first look: whatever happens leaves the server up and able to say why it is not ready."""
    try:
        await rollout.step(at_once=True)
    except Exception as error:
        live.fail(f"loading the model failed: {error}")
        log.exception("not ready")


def _openapi(app: FastAPI, live: Live, guarded: bool) -> dict[str, Any]:
    """The document for the schema of the model in service; built anew, since the model may change."""
    document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    document["components"]["schemas"].update(problem_schemas())
    if live.service:
        live.service.wire.describe(document)
        live.service.lists.describe(document)
    if guarded:
        describe_guard(document)
    return document
