"""What the shift monitor would have said of a file of requests."""

from __future__ import annotations

import asyncio
import codecs
import csv
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NotRequired

import numpy as np
from pydantic import Field

from levi_serve.bundle.commands import UsageError
from levi_serve.bundle.schema import Schema
from levi_serve.engine import Engine
from levi_serve.errors import InvalidRequestError, MalformedJsonError, ServeError
from levi_serve.monitor.detector import Detector
from levi_serve.monitor.streams import BLOCK
from levi_serve.monitor.watch import Monitor, estimated_rmse, true_rmse
from levi_serve.predictor import GivenPair
from levi_serve.shapes import Names, Reader, given_type, id_from, names_of, record
from levi_serve.versions import Version

_PART = 8 * BLOCK
"""Requests after which the monitor is asked: an alarm is dated to them."""
_BESIDE = ("id", "time", "prediction_id")
"""Of what clients send to `/feedback`: not looked at."""
_LINES = 25
"""Lines of the table, at most."""
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 900, 320, 60, 20, 30, 40


@dataclass(frozen=True)
class Point:
    """The monitor after some requests."""

    requests: int
    evidence: float
    """Natural logarithm, of all streams together."""
    strongest: str
    estimated: float | None
    true: float | None


@dataclass(frozen=True)
class Rung:
    """An alarm, by numbers of requests."""

    at: int
    since: int
    score: str
    kind: str
    evidence: float


@dataclass(frozen=True)
class Replay:
    """What was said."""

    points: Sequence[Point]
    alarms: Sequence[Rung]
    requests: int
    refused: int
    """Requests without an answer, such as those for unknown ids."""
    threshold: float


def check_plot(path: Path) -> None:
    """See, before hours of work, that a picture can be written there.

    Raises:
        UsageError: it cannot; the file is named.

    """
    there = path.exists()
    try:
        path.open("ab").close()
    except OSError as error:
        raise UsageError(f"--plot {path}: {error.strerror}; name a file that can be written") from None
    if not there:
        path.unlink()


def read_requests(path: Path, schema: Schema) -> Iterator[tuple[GivenPair, float | None]]:
    """Pairs as a server reads them and, where told, their true `rating`: JSON lines or, if the name ends in .csv, CSV
    with a header.

    Raises:
        UsageError: the file cannot be read, has no requests, or a line is none; it is named.

    """
    user, item = (entity.name for entity in schema.entities)
    reader, line = _reader(schema), 0
    wanted = f"a line has {user}, {item} and, if it is known, rating: correct it, or take it out"
    try:
        for line, given in _sheet(path, schema) if path.suffix == ".csv" else _lines(path):  # noqa: B007 - it is told
            found = reader.json(given) if isinstance(given, bytes) else reader.values(given)
            yield GivenPair(found[user], found[item]), found.get("rating")
    except MalformedJsonError:
        raise UsageError(f"{path}: line {line} is not JSON; {wanted}") from None
    except InvalidRequestError as error:
        raise UsageError(f"{path}: line {line}: {error}; {wanted}") from None
    except csv.Error as error:
        raise UsageError(f"{path}: what follows line {line} is not CSV: {error}; {wanted}") from None
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; name a file that can be read") from None
    if not line:
        raise UsageError(f"{path}: has no requests; {wanted.partition(':')[0]}")


async def replay(
    version: Version, engine: Engine, detector: Detector, requests: Iterable[tuple[GivenPair, float | None]]
) -> Replay:
    """Answer all of them in order, and let a new monitor watch. An alarm counts as seen at once, so that what lasts is
    reported again.
    """
    done = refused = 0
    monitor = Monitor(version.reference, detector, None, lambda: float(done))
    engine.watch(monitor)
    points, alarms = [], []
    waiting = iter(requests)
    while part := list(itertools.islice(waiting, _PART)):
        answers = await asyncio.gather(*(engine.predict([pair]) for pair, _ in part), return_exceptions=True)
        done += len(part)
        errors = []
        for (_, rating), answer in zip(part, answers, strict=True):
            if isinstance(answer, ServeError):
                refused += 1
            elif isinstance(answer, BaseException):
                raise answer
            elif rating is not None:
                errors.append((json.loads(answer[0])["rating"] - rating) ** 2)
        if errors:
            monitor.observe_errors(np.array(errors))
        record = monitor.read()
        streams = detector.by_stream(record)
        strongest = max(streams, key=lambda told: told[1])[0].name
        point = Point(
            done, detector.total(record), strongest, estimated_rmse(version.reference, record), true_rmse(record)
        )
        points.append(point)
        if record["active"]:
            one, stream = detector.alarms(record)[-1]
            alarms.append(Rung(done, int(one["since"]), stream.score, stream.kind, float(one["evidence"])))
            monitor.acknowledge(int(one["id"]))
    return Replay(points, alarms, done, refused, detector.threshold)


def table(found: Replay) -> str:
    """For a terminal: about _LINES lines, and every alarm."""
    every = max(1, -(-len(found.points) // _LINES))
    lines = [f"{'requests':>10}  {'evidence':>8}  {'strongest stream':<20}  {'RMSE, estimated':>15}  {'true':>6}"]
    rung = list(found.alarms)
    for number, point in enumerate(found.points, start=1):
        if number % every == 0 or number == len(found.points):
            numbers = f"{_text(point.estimated, 3):>15}  {_text(point.true, 3):>6}"
            lines.append(f"{point.requests:>10,}  {_text(point.evidence, 1):>8}  {point.strongest:<20}  {numbers}")
        while rung and rung[0].at == point.requests:
            alarm = rung.pop(0)
            what = f"{alarm.score} {alarm.kind}, evidence {alarm.evidence:.1f}, since request {alarm.since:,}"
            lines.append(f"{alarm.at:>10,}  ALARM: {what}")
    lines.append(
        f"{found.requests:,} requests, {found.refused:,} of them without an answer; {len(found.alarms)} alarms at "
        f"evidence {found.threshold:.1f}"
    )
    return "\n".join(lines)


def drawing(found: Replay) -> str:
    """The evidence over the requests as an SVG picture."""
    low = -3.0
    high = max([found.threshold * 1.1, *(a.evidence for a in found.alarms)]) + 1
    across, down = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def x(requests: float) -> str:
        return f"{_LEFT + across * requests / max(found.requests, 1):.1f}"

    def y(evidence: float) -> str:
        return f"{_TOP + down * (high - min(max(evidence, low), high)) / (high - low):.1f}"

    thin = found.points[:: max(1, len(found.points) // 2000)]
    line = " ".join(f"{x(p.requests)},{y(p.evidence)}" for p in thin)
    limit, zero = y(found.threshold), y(0)
    marks = "".join(
        f'<line x1="{x(a.at)}" x2="{x(a.at)}" y1="{_TOP}" y2="{_TOP + down}" stroke="#c0392b" stroke-dasharray="2 3">'
        f"<title>{a.score} {a.kind} at request {a.at:,}</title></line>"
        for a in found.alarms
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" '
        f'font-size="12"><title>Evidence of a shift over {found.requests:,} requests</title>'
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>'
        f'<text x="{_LEFT}" y="18">Evidence of a shift (natural logarithm); {len(found.alarms)} alarms</text>'
        f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{limit}" y2="{limit}" stroke="#c0392b"/>'
        f'<text x="{_LEFT - 6}" y="{limit}" text-anchor="end" dy="4">{found.threshold:.1f}</text>'
        f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{zero}" y2="{zero}" stroke="#bbb"/>'
        f'<text x="{_LEFT - 6}" y="{zero}" text-anchor="end" dy="4">0</text>'
        f'{marks}<polyline points="{line}" fill="none" stroke="#2c5f8a" stroke-width="1.5"/>'
        f'<text x="{_LEFT}" y="{_HEIGHT - 12}">request 0</text>'
        f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 12}" text-anchor="end">{found.requests:,}</text></svg>\n'
    )


def _reader(schema: Schema) -> Reader:
    rating = Annotated[float, Field(ge=schema.rating_min, le=schema.rating_max, strict=True, allow_inf_nan=False)]
    givens = {entity.name: given_type(entity) for entity in schema.entities}
    fields = {**givens, "rating": NotRequired[rating | None], **dict.fromkeys(_BESIDE, NotRequired[Any])}
    names: Names = {entity.name: names_of(entity) for entity in schema.entities}
    return Reader(record("Request", fields), {**{name: {} for name in fields}, **names})


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines with their numbers, but for empty ones."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            text = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if text.strip():
                yield number, text


def _sheet(path: Path, schema: Schema) -> Iterator[tuple[int, dict[str, Any]]]:
    """Records with the numbers of the lines on which they end; what is left empty is not in them."""
    read: dict[str, Callable[[str], Any]] = {entity.name: id_from(entity) for entity in schema.entities}
    read["rating"] = _number_from
    # Bytes that are no UTF-8 go on to the reader, which says in which line they are.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        sheet = csv.DictReader(file, restkey="a value without a column", strict=True)
        for row in sheet:
            yield sheet.line_num, {name: read.get(name, str)(text) for name, text in row.items() if text}


def _number_from(text: str) -> Any:
    """What is written as a number, as one."""
    try:
        return float(text)
    except ValueError:
        return text


def _text(value: float | None, digits: int) -> str:
    return "–" if value is None or not np.isfinite(value) else f"{value:.{digits}f}"
