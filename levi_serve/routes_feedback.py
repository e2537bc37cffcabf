"""The endpoint that takes ratings in."""

from __future__ import annotations

import time
import uuid
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from levi_serve.bundle.feedback import Event
from levi_serve.errors import UnsupportedError
from levi_serve.exchange import deadline_of, read_json
from levi_serve.feedback import Feedback
from levi_serve.live import Live, Service
from levi_serve.problems import documented
from levi_serve.store import State
from levi_serve.trial import Trial


class Receipt(BaseModel):
    """The event is durable."""

    id: str = Field(description="the event's; sent again, it counts once")
    unknown: list[str] = Field(description="entities that are not in the catalogue; stored all the same")


def build_feedback_router(
    live: Live, trial: Trial, feedback: Feedback | None, max_body_bytes: int, timeout_s: float
) -> APIRouter:
    """The endpoint over the `feedback` log; without one it refuses."""
    router = APIRouter()

    @router.post(
        "/feedback",
        summary="Report a rating",
        responses=documented(400, 409, 413, 415, 422, 429, 500, 503, 504),
    )
    async def report(request: Request) -> Receipt:
        """Store a rating that a user gave. The answer means that it is durable; without an answer send it again
        with the same id, and it counts once.
        """
        live.current()
        if feedback is None:
            raise UnsupportedError(
                "this server keeps no feedback: start it with --feedback FOLDER or --feedback redis://HOST"
            )
        deadline = deadline_of(request, timeout_s)
        body = await read_json(request, max_body_bytes)
        with live.current() as service:
            event = await _event(service, service.wire.feedback(body))
        await feedback.append(event, deadline)
        if not event.unknown:
            trial.learn(event)
        return Receipt(id=event.id, unknown=list(event.unknown))

    return router


async def _event(service: Service, said: dict[str, Any]) -> Event:
    """The event, its entities looked up in the version that is served."""
    names = [entity.name for entity in service.version.manifest.schema_.entities]
    now = time.time()
    unknown = await service.engine.unknown(said[names[0]], said[names[1]])
    return Event(
        id=said.get("id") or str(uuid.uuid4()),
        user=said[names[0]],
        item=said[names[1]],
        rating=said["rating"],
        time=said.get("time", now),
        received=now,
        prediction=said.get("prediction_id"),
        attributes=said.get("attributes", {}),
        unknown=[name for name, state in zip(names, unknown, strict=True) if state == State.UNKNOWN],
    )
