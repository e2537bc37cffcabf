"""Entities that came, changed or went after a version was exported: what is kept of each, in a SQLite file or in Redis.

The latest change of an entity is kept, and nothing that came before it: what is erased is gone. Changes are numbered in
their order, so that whoever knows all up to a number can ask for the rest. A change is durable when `put` has returned;
with Redis, as durable as its `appendonly` setting makes it.
"""

from __future__ import annotations

import json
import sqlite3
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from levi_serve.bundle.commands import RunError
from levi_serve.bundle.redis_url import is_redis, open_redis, shown
from levi_serve.bundle.rows import Id, read_attributes
from levi_serve.bundle.schema import Attributes

T = TypeVar("T")

_TIMEOUT_S = 2.0


class Change(NamedTuple):
    """The latest that was said of an entity."""

    entity: str
    """Its kind, as the schema names it."""
    id: Id
    attributes: Attributes | None
    """None: it was erased."""
    digest: str = ""
    """Of the version (`keys.rows_digest`) that `row` belongs to."""
    row: bytes = b""
    """fp16, as the version's tables hold it."""


class PlaceError(RunError):
    """The list cannot be read or written; the message says why."""


class FullError(PlaceError):
    """It holds as many entities as it may."""


class EntityList(Protocol):
    """The list. Its calls wait for disk or network."""

    def put(self, change: Change, most: int) -> None:
        """Return when it is durable. An entity that is new to the list must not be its `most`-and-first, unless erased.

        Raises:
            PlaceError: it is not known to be.

        """

    def since(self, number: int) -> tuple[int, list[Change]]:
        """The number of the last change, and the changes after this one, in order. All of them if the list has begun
        anew meanwhile.

        Raises:
            PlaceError: it cannot be read.

        """

    def close(self) -> None:
        """Let go of it."""


def open_entities(place: str | Path, model: str) -> EntityList:
    """The list at this place, as `levi-serve --entities` names it: a file, or a Redis URL."""
    return _RedisList(str(place), model) if is_redis(str(place)) else _FileList(Path(place))


class _FileList:
    """SQLite. Several processes of one machine may use the file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: sqlite3.Connection | None = None

    def put(self, change: Change, most: int) -> None:
        self._ask(self._put, change, most)

    def since(self, number: int) -> tuple[int, list[Change]]:
        return self._ask(self._since, number)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _put(self, file: sqlite3.Connection, change: Change, most: int) -> None:
        key = (change.entity, json.dumps(change.id))
        with file:
            file.execute("BEGIN IMMEDIATE")
            (last, count) = file.execute("SELECT coalesce(max(number), 0), count(*) FROM changes").fetchone()
            if change.attributes is not None and count >= most:
                known = file.execute("SELECT 1 FROM changes WHERE entity = ? AND id = ?", key).fetchone()
                _require_room(known is not None, most)
            said = None if change.attributes is None else json.dumps(change.attributes)
            file.execute(
                "INSERT OR REPLACE INTO changes VALUES (?, ?, ?, ?, ?, ?)",
                (*key, last + 1, said, change.digest, change.row),
            )

    @staticmethod
    def _since(file: sqlite3.Connection, number: int) -> tuple[int, list[Change]]:
        (last,) = file.execute("SELECT coalesce(max(number), 0) FROM changes").fetchone()
        found = file.execute(
            "SELECT entity, id, attributes, digest, row FROM changes WHERE number > ? ORDER BY number",
            (number if last >= number else 0,),
        )
        return last, [Change(e, json.loads(i), _read(said), digest, row) for e, i, said, digest, row in found]

    def _open(self) -> sqlite3.Connection:
        """Opened again if somebody has taken the file away."""
        if self._file is None or not self._path.exists():
            self.close()
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = file = sqlite3.connect(
                self._path, timeout=_TIMEOUT_S, isolation_level=None, check_same_thread=False
            )
            file.execute("PRAGMA synchronous = EXTRA")
            file.execute("PRAGMA secure_delete = ON")  # what is erased is overwritten
            file.execute(
                "CREATE TABLE IF NOT EXISTS changes (entity TEXT, id TEXT, number INTEGER UNIQUE, attributes TEXT, "
                "digest TEXT, row BLOB, PRIMARY KEY (entity, id))"
            )
        return self._file

    def _ask(self, work: Callable[..., T], *arguments: object) -> T:
        try:
            return work(self._open(), *arguments)
        except (sqlite3.Error, OSError, ValueError) as error:
            self.close()
            raise PlaceError(f"the list of entities {self._path}: {error}") from None


_PUT = """
local last = redis.call('ZREVRANGE', KEYS[2], 0, 0, 'WITHSCORES')
local known = redis.call('HEXISTS', KEYS[1], ARGV[1])
if tonumber(ARGV[3]) >= 0 and known == 0 and redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[3]) then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('ZADD', KEYS[2], (tonumber(last[2]) or 0) + 1, ARGV[1])
return 1
"""


class _RedisList:
    """A hash of changes, and a sorted set with their numbers; both in one slot of a cluster."""

    def __init__(self, url: str, model: str) -> None:
        self._where = f"the list of entities in {shown(url)}"
        self._redis = open_redis(url, _TIMEOUT_S)
        self._changes, self._order = (f"levi:{{{model}}}:entities{part}".encode() for part in ("", ":order"))

    def put(self, change: Change, most: int) -> None:
        said = change._asdict() | {"row": b64encode(change.row).decode()}
        limit = -1 if change.attributes is None else most
        keys = (self._changes, self._order)
        _require_room(bool(self._ask("eval", _PUT, 2, *keys, _field(change), json.dumps(said), limit)), most)

    def since(self, number: int) -> tuple[int, list[Change]]:
        newest = self._ask("zrevrange", self._order, 0, 0, True)
        last = int(newest[0][1]) if newest else 0
        if last == number:
            return last, []
        fields = self._ask("zrangebyscore", self._order, f"({number if last >= number else 0}", last)
        values = self._ask("hmget", self._changes, fields) if fields else []
        return last, [_change(value) for value in values if value is not None]

    def close(self) -> None:
        self._redis.close()

    def _ask(self, command: str, *arguments: object) -> Any:
        from redis.exceptions import RedisError  # noqa: PLC0415 - importing Redis takes 0.1 s

        try:
            return getattr(self._redis, command)(*arguments)
        except (RedisError, OSError) as error:
            raise PlaceError(f"{self._where}: {' '.join(str(error).split()) or type(error).__name__}") from None


def _field(change: Change) -> str:
    return f"{change.entity}:{json.dumps(change.id)}"


def _change(value: bytes) -> Change:
    said: Mapping[str, Any] = json.loads(value)
    attributes = said["attributes"]
    read = None if attributes is None else _read(json.dumps(attributes))
    return Change(said["entity"], said["id"], read, said["digest"], b64decode(said["row"]))


def _read(said: str | None) -> Attributes | None:
    return None if said is None else read_attributes(said.encode())


def _require_room(room: bool, most: int) -> None:
    if not room:
        raise FullError(f"the list of entities holds {most}, erased ones included, and as many as it may")
