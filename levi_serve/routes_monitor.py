"""The endpoints of the shift monitor."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field

from levi_serve.bundle.reference import Reference
from levi_serve.bundle.schema import Schema
from levi_serve.live import Live, Service
from levi_serve.monitor.detector import Record
from levi_serve.monitor.streams import Kind, Stream
from levi_serve.monitor.watch import Monitor, estimated_rmse, head_ratings, true_rmse
from levi_serve.problems import ProblemError, documented


class Budget(BaseModel):
    """How rarely live traffic that is as it should be may raise an alarm."""

    days: float = Field(description="mean time between two false alarms, at least")
    rate: float = Field(description="predictions a second that this is reckoned with")


class Total(BaseModel):
    """Evidence of all streams together."""

    value: float | None = Field(description="natural logarithm; null before the first block")
    threshold: float = Field(description="at which an alarm is raised")


class StreamEvidence(BaseModel):
    """Evidence that one property of one score has changed."""

    score: str
    kind: Kind = Field(description="`mean`: higher; `upper`: very high too often; `lower`: lower")
    evidence: float | None


class Head(BaseModel):
    """One head's ratings, lately and in distribution."""

    mean: float | None
    deviation: float | None
    id_mean: float
    id_deviation: float


class Alarm(BaseModel):
    """An alarm. It stays until somebody acknowledges it; then the evidence begins anew."""

    id: str
    raised: str = Field(description="when, UTC")
    since: str = Field(description="when the change began, by the strongest stream")
    score: str
    kind: Kind
    evidence: float
    acknowledged: str | None


class Usual(BaseModel):
    """How much the heads disagree in distribution where the predicted rating is in this part of the scale."""

    rating_from: float
    rating_to: float
    low: float | None = Field(description="5 % of such predictions disagree less; null if there was none")
    high: float | None = Field(description="5 % of such predictions disagree more")


class MonitorReport(BaseModel):
    """Whether live traffic is still like the data that the model was fitted on."""

    status: Literal["warming", "ok", "alarm"]
    since: str | None = Field(description="when the change began that an open alarm is about")
    predictions: int = Field(description="watched so far")
    passed_over: int = Field(description="not watched, being more a second than the budget is reckoned with")
    score: str = Field(description="the score of `bins`")
    budget: Budget
    evidence: Total
    streams: list[StreamEvidence]
    bins: list[float] = Field(description="recent predictions by twentieths of the score in distribution, least first")
    unknown: dict[str, float | None] = Field(description="recent share of predictions with an entity never trained on")
    usual: list[Usual] = Field(description="the heads' disagreement in distribution, by predicted rating")
    estimated_rmse: float | None = Field(description="from the heads' disagreement, without labels")
    id_rmse: float = Field(description="measured in distribution")
    true_rmse: float | None = Field(description="of recent predictions whose true rating came")
    heads: list[Head] = Field(description="early to late layer")
    alarms: list[Alarm] = Field(description="oldest first; the last 32 are kept")


class MonitorOff(BaseModel):
    """There is no monitor."""

    status: Literal["off"] = "off"


def build_monitor_router(live: Live, days: float, rate: float) -> APIRouter:
    """Over the monitor of the version in service, whose false-alarm budget is so many `days` at `rate` a second."""
    router = APIRouter(prefix="/monitor")
    budget = Budget(days=days, rate=rate)

    @router.get("", summary="Is live traffic as it should be?", responses=documented(503))
    async def monitor() -> MonitorReport | MonitorOff:
        """Evidence of a shift, alarms, and what live traffic looks like."""
        service = live.current()
        if service.monitor is None:
            return MonitorOff()
        return _report(service, service.monitor, budget)

    @router.post("/alarms/{alarm}/acknowledge", summary="Acknowledge an alarm", responses=documented(404, 503))
    async def acknowledge(alarm: str) -> Alarm:
        """Say that somebody has seen it. Acknowledging it again changes nothing. What lasts raises another alarm."""
        watching = live.current().monitor
        number = int(alarm) if alarm.isascii() and alarm.isdecimal() and len(alarm) < 18 else 0
        if watching is not None and watching.acknowledge(number):
            for one in _alarms(watching, watching.read()):
                if one.id == str(number):
                    return one
        raise ProblemError(404, "unknown-alarm", "there is no such alarm; GET /monitor lists the last ones")

    return router


def _report(service: Service, monitor: Monitor, budget: Budget) -> MonitorReport:
    record, detector, reference = monitor.read(), monitor.detector, monitor.reference
    manifest = service.version.manifest
    alarms = _alarms(monitor, record)
    opened = [alarm for alarm in alarms if alarm.acknowledged is None]
    status: Any = "alarm" if record["active"] else "ok" if detector.warm(record) else "warming"
    names = [entity.name for entity in manifest.schema_.entities]
    watched = float(record["recent_predictions"])
    shares = (record["recent_new"] / watched).tolist() if watched else (None, None)
    live = head_ratings(record)
    means, deviations = ([None] * manifest.layers,) * 2 if live is None else (live[0].tolist(), live[1].tolist())
    return MonitorReport(
        status=status,
        since=opened[-1].since if opened else None,
        predictions=int(record["predictions"]),
        passed_over=int(record["passed_over"]),
        score=manifest.score,
        budget=budget,
        evidence=Total(value=_finite(detector.total(record)), threshold=round(detector.threshold, 3)),
        streams=[_stream(stream, value) for stream, value in detector.by_stream(record)],
        bins=record["recent_counts"][detector.streams.scores.index(manifest.score)].round(2).tolist(),
        unknown=dict(zip(names, shares, strict=True)),
        usual=_usual(reference, manifest.schema_),
        estimated_rmse=estimated_rmse(reference, record),
        id_rmse=reference.rmse,
        true_rmse=true_rmse(record),
        heads=[
            Head(mean=mean, deviation=deviation, id_mean=id_mean, id_deviation=id_deviation)
            for mean, deviation, id_mean, id_deviation in zip(
                means, deviations, *reference.heads[:2].tolist(), strict=True
            )
        ],
        alarms=alarms,
    )


def _usual(reference: Reference, schema: Schema) -> list[Usual]:
    bounds = [schema.rating_min, *reference.rating_edges.tolist(), schema.rating_max]
    lows, highs = reference.by_rating[:, reference.names.index("spread")][:, [0, -1]].T.tolist()
    return [
        Usual(rating_from=start, rating_to=end, low=_finite(low), high=_finite(high))
        for start, end, low, high in zip(bounds[:-1], bounds[1:], lows, highs, strict=True)
    ]


def _alarms(monitor: Monitor, record: Record) -> list[Alarm]:
    return [
        Alarm(
            id=str(one["id"]),
            raised=_time(one["raised"]),
            since=_time(one["since"]),
            score=stream.score,
            kind=stream.kind,
            evidence=round(float(one["evidence"]), 3),
            acknowledged=_time(one["seen"]) if one["seen"] else None,
        )
        for one, stream in monitor.detector.alarms(record)
    ]


def _stream(stream: Stream, evidence: float) -> StreamEvidence:
    return StreamEvidence(score=stream.score, kind=stream.kind, evidence=_finite(evidence))


def _finite(value: float) -> float | None:
    """JSON has neither infinity nor what is no number."""
    return round(value, 3) if math.isfinite(value) else None


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(float(seconds), UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
