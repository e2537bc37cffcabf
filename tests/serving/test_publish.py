"""levi_serve.publish and its command against real Redis servers."""

from __future__ import annotations

import io
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from levi_serve import publish as publishing
from levi_serve.bundle.commands import UsageError
from levi_serve.bundle.keys import Keys, Stored, decode_value
from levi_serve.bundle.manifest import BundleError, Manifest
from levi_serve.bundle.rows import Table
from levi_serve.cli import main
from levi_serve.publish import Progress, Published, publish
from levi_serve.remote import RemoteError

from .redis_server import RedisServer, free_port, until
from .toy import Toy

Start = Callable[..., RedisServer]
QUIET: Callable[[str, int, int], None] = lambda *_: None  # noqa: E731


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """The toy's few rows go in several pipelines."""
    monkeypatch.setattr(publishing, "ROWS", 2)


def expected(repository: Path) -> dict[bytes, Stored | bytes]:
    """What must be in Redis: every row of both tables, and the marks."""
    folder = repository / "levi" / "1"
    manifest = Manifest.model_validate_json((folder / "manifest.json").read_text())
    keys = Keys(manifest)
    found: dict[bytes, Stored | bytes] = {}
    for side, entity in enumerate(manifest.schema_.entities):
        table = Table(folder, f"{entity.name}s")
        ids = [i.decode() if isinstance(i, bytes) else i for i in table.ids.tolist()]
        for number, key in enumerate(keys.known(side, ids)):
            told = table.attributes_json(number) if manifest.views == "pair" else b""
            found[key] = Stored(table.rows[number], bool(table.trained[number]), told)
        found[keys.marks[side]] = b"%d" % len(table)
    return found


def is_there(client: redis.Redis, expected: dict[bytes, Stored | bytes]) -> bool:
    """Redis holds exactly that."""
    if {*client.keys("*")} != {*expected}:
        return False
    for key, wanted in expected.items():
        value = client.get(key)
        if isinstance(wanted, bytes):
            same = value == wanted
        else:
            found = decode_value(key, value, len(wanted.row))
            same = found is not None and (found.row.tobytes(), found[1:]) == (wanted.row.tobytes(), wanted[1:])
        if not same:
            return False
    return True


def test_all_rows(start_redis: Start, toy_repository: Path) -> None:
    """Both tables and their marks are in Redis, with attributes for pair views only; doing it again changes nothing."""
    server = start_redis()
    said: list[tuple[str, int, int]] = []
    for _ in range(2):
        done = publish(toy_repository, "levi", 1, server.url, (), None, lambda *progress: said.append(progress))
        assert [(one.entity, one.rows) for one in done] == [("user", 4), ("movie", 3)]
        assert all(one.seconds > 0 for one in done)
        assert is_there(server.client, expected(toy_repository))
    rows = {entity: [rows for e, rows, _ in said if e == entity] for entity, *_ in said}
    assert rows["user"] == 2 * [2, 4]
    assert rows["movie"] in (a + b for a in ([2, 3], [1, 3]) for b in ([2, 3], [1, 3]))
    assert {(entity, total) for entity, _, total in said} == {("user", 4), ("movie", 3)}
    assert server.client.ttl(next(iter(expected(toy_repository)))) == -1


def test_text_ids(start_redis: Start, tmp_path: Path) -> None:
    """Ids may be any text, and more than one pipeline holds."""
    users = {f"{i} ünï:{{{i}}}\n": {"age": i} for i in range(25)}
    Toy("entity", id_type="string", users=users, movies={"": {"title": "None"}}).write(tmp_path)
    server = start_redis()
    publish(tmp_path, "levi", 1, server.url, (), None, QUIET)
    assert is_there(server.client, expected(tmp_path))
    assert server.client.dbsize() == 25 + 1 + 2


def test_one_entity(start_redis: Start, entity_toy_repository: Path) -> None:
    """Only the table that was asked for is written."""
    server = start_redis()
    done = publish(entity_toy_repository, "levi", 1, server.url, ("movie",), None, QUIET)
    assert [one.entity for one in done] == ["movie"]
    wanted = {key: value for key, value in expected(entity_toy_repository).items() if b":movie" in key}
    assert is_there(server.client, wanted)


def test_rows_expire_together(start_redis: Start, entity_toy_repository: Path) -> None:
    """With a time to live the mark goes shortly before the rows, so that no row is missed while it stands."""
    server = start_redis()
    publish(entity_toy_repository, "levi", 1, server.url, (), 100, QUIET)
    ends = {key: server.client.pttl(key) for key in server.client.keys("*")}
    marks = [end for key, end in ends.items() if re.search(rb":(user|movie)$", key)]
    rows = [end for key, end in ends.items() if re.search(rb":(user|movie):", key)]
    assert (len(marks), len(rows)) == (2, 7)
    assert 0 < max(marks) < min(rows) <= 100_000


def test_cluster(start_redis: Start, entity_toy_repository: Path) -> None:
    """A cluster gets its rows through any of its nodes."""
    node = start_redis("--cluster-enabled", "yes")
    node.client.execute_command("CLUSTER", "ADDSLOTS", *range(16384))
    until(lambda: b"cluster_state:ok" in node.client.execute_command("CLUSTER", "INFO"))
    publish(entity_toy_repository, "levi", 1, f"redis+cluster://127.0.0.1:{node.port}", (), None, QUIET)
    assert is_there(node.client, expected(entity_toy_repository))


def refused(repository: Path, url: str, report: Callable[[str, int, int], None] = QUIET) -> str:
    with pytest.raises(RemoteError) as caught:
        publish(repository, "levi", 1, url, (), None, report)
    return str(caught.value)


def test_full(start_redis: Start, tmp_path: Path) -> None:
    """A Redis that is full says how far it got; there is no mark, and with more memory the same command succeeds."""
    Toy("pair", users={i: {"occupation": "x" * 5000} for i in range(300)}).write(tmp_path)
    server = start_redis()
    server.client.config_set("maxmemory", server.client.info("memory")["used_memory"] + 700_000)
    said = refused(tmp_path, server.url)
    found = re.fullmatch(
        rf"{server.url}: is full; raise its maxmemory or publish fewer entities "
        r"\((\d+) of 300 rows of user were written\); then run the same command again",
        said,
    )
    assert found, said
    assert 0 < int(found[1]) == server.client.dbsize() < 300
    server.client.config_set("maxmemory", 0)
    publish(tmp_path, "levi", 1, server.url, (), None, QUIET)
    assert server.client.dbsize() == 300 + 3 + 2


def test_read_only(start_redis: Start, entity_toy_repository: Path) -> None:
    """A replica takes no writes."""
    primary, replica = start_redis(), start_redis()
    replica.client.replicaof("127.0.0.1", primary.port)
    assert "is a read-only replica; publish to its primary (0 of 4 rows" in refused(entity_toy_repository, replica.url)


@pytest.mark.parametrize(("policy", "warns"), [("allkeys-lru", True), ("volatile-lru", False), ("noeviction", False)])
def test_eviction(
    start_redis: Start, entity_toy_repository: Path, caplog: pytest.LogCaptureFixture, policy: str, warns: bool
) -> None:
    """A Redis that may drop rows that do not expire is worth a warning: the server could not tell."""
    server = start_redis("--maxmemory-policy", policy)
    publish(entity_toy_repository, "levi", 1, server.url, (), None, QUIET)
    assert [f"({policy})" in record.getMessage() for record in caplog.records] == [True] * warns


def test_ends_midway(start_redis: Start, entity_toy_repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Redis that dies meanwhile is an error that says how far it got, and the same command mends it."""
    monkeypatch.setattr(publishing, "ROWS", 1)
    server = start_redis()
    said = refused(entity_toy_repository, server.url, lambda *_: server.kill())
    assert re.search(r"\([123] of 4 rows of user were written\); then run the same command again", said)
    server.start()
    publish(entity_toy_repository, "levi", 1, server.url, (), None, QUIET)
    assert is_there(server.client, expected(entity_toy_repository))


def test_freezes_midway(start_redis: Start, entity_toy_repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Redis that says nothing is waited for no longer than a pipeline may take."""
    monkeypatch.setattr(publishing, "TIMEOUT_S", 0.2)
    server = start_redis()
    said = refused(entity_toy_repository, server.url, lambda *_: server.freeze())
    assert "no answer in time (" in said or "Timeout" in said


@pytest.mark.parametrize(
    ("login", "says"),
    [("", "put user and password into the URL"), (":wrong@", "put user and password into the URL")],
)
def test_password(start_redis: Start, entity_toy_repository: Path, login: str, says: str) -> None:
    """As for the server, a password that is missing or wrong is said and not shown."""
    server = start_redis(password="secret")
    said = refused(entity_toy_repository, f"redis://{login}127.0.0.1:{server.port}")
    assert says in said
    assert "wrong@" not in said


def test_nothing_is_written_of_a_broken_version(
    start_redis: Start, entity_toy_repository: Path, tmp_path: Path
) -> None:
    """A version with a changed file is not published."""
    repository = Path(shutil.copytree(entity_toy_repository, tmp_path / "repository"))
    with (repository / "levi/1/users.rows.npy").open("ab") as file:
        file.write(b"x")
    server = start_redis()
    with pytest.raises(BundleError, match=r"users.rows.npy: checksum differs"):
        publish(repository, "levi", 1, server.url, (), None, QUIET)
    assert server.client.dbsize() == 0


def test_no_such_entity(entity_toy_repository: Path) -> None:
    """An entity that the model does not have is wrong usage; Redis is not even asked."""
    with pytest.raises(UsageError, match="--entity film: the entities of levi/1 are user and movie"):
        publish(entity_toy_repository, "levi", 1, f"redis://127.0.0.1:{free_port()}", ("user", "film"), None, QUIET)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress() -> None:
    """On a terminal one line is written over and over, and is gone in the end; elsewhere there is none."""
    terminal, file = Terminal(), io.StringIO()
    for stream in (terminal, file):
        progress = Progress(stream)
        for rows in (500, 1000, 2000):
            progress("user", rows, 2000)
    lines = terminal.getvalue().split("\r\x1b[K")
    assert lines[1] == "user: 500 of 2,000 rows"
    assert re.fullmatch(r"user: 1,000 of 2,000 rows, [\d,]+ a second, 0 s left", lines[2])
    assert lines[-1] == ""
    assert file.getvalue() == ""


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["levi-serve", "publish", *map(str, arguments)])
    return main()


def test_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], start_redis: Start, entity_toy_repository: Path
) -> None:
    """`levi-serve publish` takes the newest version and prints rows, time and rate of each table."""
    server = start_redis()
    assert command(monkeypatch, "--model-repo", entity_toy_repository, "--redis", server.url) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert re.fullmatch(r"user +4 rows in \d+\.\d s, [\d,]+ a second", lines[0])
    assert re.fullmatch(r"movie +3 rows in \d+\.\d s, [\d,]+ a second", lines[1])
    assert captured.err == ""
    assert is_there(server.client, expected(entity_toy_repository))


def test_command_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], entity_toy_repository: Path
) -> None:
    """Without Redis it is one line and exit code 1."""
    url = f"redis://:secret@127.0.0.1:{free_port()}"
    assert command(monkeypatch, "--model-repo", entity_toy_repository, "--redis", url, "--entity", "user") == 1
    said = capsys.readouterr().err
    assert said.startswith("levi-serve publish: redis://127.0.0.1:")
    assert "(0 of 4 rows of user were written)" in said
    assert "secret" not in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "--redis (or LEVI_REDIS): Field required"),
        (["--redis", "http://h"], "--redis (or LEVI_REDIS): a Redis URL starts with"),
        (["--redis", "redis://h", "--ttl-s", "0"], "--ttl-s"),
        (["--redis", "redis://h", "--version", "0"], "--version"),
    ],
)
def test_wrong_usage(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    """A wrong flag is one line and exit code 2."""
    assert command(monkeypatch, *arguments) == 2
    captured = capsys.readouterr()
    assert says in captured.err
    assert captured.err.count("\n") == 1


def test_several_entities(monkeypatch: pytest.MonkeyPatch, entity_toy_repository: Path) -> None:
    """Entities are named by one flag each or with commas, and in the environment too."""
    seen: list[tuple[str, ...]] = []

    def spy(*arguments: object) -> list[Published]:
        seen.append(arguments[4])
        return []

    monkeypatch.setattr(publishing, "publish", spy)
    base = ("--model-repo", entity_toy_repository, "--redis", "redis://h")
    assert command(monkeypatch, *base, "--entity", "user,movie") == 0
    assert command(monkeypatch, *base, "--entity", "user", "--entity", "movie") == 0
    monkeypatch.setenv("LEVI_ENTITY", "user, movie")
    assert command(monkeypatch, *base) == 0
    assert seen == [("user", "movie")] * 3
