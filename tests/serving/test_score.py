"""levi_serve.score: exactly one row per input, the same as over HTTP, however often the job was killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from levi_serve import bulk, cli
from levi_serve import score as module
from levi_serve.bulk import Bulk
from levi_serve.score import Job, on_this_machine, score

from .conftest import ROOT, until
from .redis_server import free_port
from .running import RunningApp
from .toy import MOVIES, RATED, USERS, Toy

EVERY = [(u, m) for u in (*USERS, 99) for m in (*MOVIES, 98)]
"""Pairs, with an unknown user and an unknown movie; user 13 has rows that are not numbers."""


def write(path: Path, pairs: list[tuple[Any, Any]], row_group_size: int = 1000, **more: Any) -> Path:
    columns = dict(zip(("user", "movie"), map(list, zip(*pairs, strict=True)), strict=True))
    pq.write_table(pa.table(columns | more), path, row_group_size=row_group_size)
    return path


def quiet(*_: object) -> None:
    """No progress."""


def job(repository: Path, out: Path, top_k: int | None = None, exclude_rated: bool = False) -> Job:
    return Job(repository, "levi", 1, out, top_k, exclude_rated)


def result(out: Path) -> list[dict[str, Any]]:
    """All rows in order."""
    return pq.read_table(sorted(out.glob("part-*.parquet"))).to_pylist()


def files(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir()}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Runs `levi-serve score` here; exit code and what it said."""

    def score(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["levi-serve", "score", *map(str, arguments)])
        code = cli.main()
        said = capsys.readouterr()
        return code, said.out + said.err

    return score


def test_the_same_as_over_http(app: RunningApp, toy_repository: Path, tmp_path: Path) -> None:
    """Every input row in its order with its own columns; ratings and flags are those of the server."""
    pairs = write(tmp_path / "pairs.parquet", EVERY, note=[f"n{k}" for k in range(len(EVERY))])
    assert score(job(toy_repository, tmp_path / "out"), pairs, on_this_machine(1), quiet) == len(EVERY)
    rows = result(tmp_path / "out")
    assert [(row["user"], row["movie"], row["note"]) for row in rows] == [
        (*pair, f"n{k}") for k, pair in enumerate(EVERY)
    ]
    for row in rows:
        answer = app.get(f"/predict?user={row['user']}&movie={row['movie']}")
        if answer.status_code != 200:
            assert row["rating"] is row["disagreement"] is row["ood_score"] is None
            continue
        told = answer.json()
        for name in ("rating", "disagreement", "ood_score"):
            assert row[name] == pytest.approx(told[name], abs=1e-5)
        assert [name for name in ("user", "movie") if row[f"cold_{name}"]] == told["cold_start"]
    by_id = {(row["user"], row["movie"]): row for row in rows}
    assert by_id[99, 50]["cold_user"] and not by_id[99, 50]["cold_movie"]  # noqa: PT018
    assert (tmp_path / "out/_SUCCESS").exists()


def test_users_in_any_order(entity_toy: Toy, entity_toy_repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a user gets runs of its own or shares them, each pair gets its own rating."""
    monkeypatch.setattr(bulk, "_ALONE", 3)
    monkeypatch.setattr(bulk, "CHUNK", 2)
    users, movies = [7, 138, 7, 9, 7, 7, 138], [50, 50, 357, 357, 1001, 50, 357]
    opened = Bulk(entity_toy_repository, "levi", 1)
    rated = opened.rate(users, movies)
    opened.close()
    wanted = [entity_toy.rating(u, m) for u, m in zip(users, movies, strict=True)]
    np.testing.assert_allclose(rated.values[:, 0], wanted, atol=2e-3)
    assert rated.cold[1].tolist() == [m == 1001 for m in movies]


def test_text_ids_and_gaps(tmp_path: Path) -> None:
    """Ids may be text; a row without one is kept, without a rating."""
    users, movies = ({f"é{key}": value for key, value in rows.items()} for rows in (USERS, MOVIES))
    Toy("entity", "string", users, movies).write(tmp_path / "repository")
    pairs = write(tmp_path / "pairs.parquet", [("é7", "é50"), (None, "é50"), ("é7", "nobody")])
    score(job(tmp_path / "repository", tmp_path / "out"), pairs, on_this_machine(1), quiet)
    assert [row["rating"] is not None for row in result(tmp_path / "out")] == [True, False, False]


@pytest.mark.parametrize("exclude_rated", [False, True])
def test_best_of_all_users(
    entity_app: RunningApp, entity_toy_repository: Path, tmp_path: Path, exclude_rated: bool
) -> None:
    """The same lists as /recommend gives."""
    score(job(entity_toy_repository, tmp_path / "out", 2, exclude_rated), None, on_this_machine(1), quiet)
    rows = result(tmp_path / "out")
    for user in (138, 7, 9):
        asked = f"/recommend?user={user}&k=2&exclude_rated={str(exclude_rated).lower()}"
        told = [(item["movie"], item["rating"]) for item in entity_app.get(asked).json()["items"]]
        mine = [row for row in rows if row["user"] == user]
        assert [(row["movie"], row["rating"]) for row in mine] == told
        assert [row["rank"] for row in mine] == list(range(1, len(mine) + 1))
        assert not exclude_rated or not {row["movie"] for row in mine} & {*RATED.get(user, ())}


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """A folder of two files of three row groups, 30 rows each."""
    folder = tmp_path / "many"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        chosen = [EVERY[k] for k in rng.integers(len(EVERY), size=90)]
        write(folder / f"{name}.parquet", chosen, 30)
    return folder


def test_killed_and_started_again(
    many: Path, entity_toy_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between and within parts, with half a file left behind: byte for byte what an undisturbed job writes, and
    no part is computed twice.
    """
    monkeypatch.setattr(module, "_ROWS", 30)
    whole, torn = job(entity_toy_repository, tmp_path / "whole"), job(entity_toy_repository, tmp_path / "torn")
    assert score(whole, many, on_this_machine(1), quiet) == 180
    computed: list[int] = []
    real = Job.compute

    def counted(self: Job, part: module.Part) -> int:
        if part.number == len(computed) == 2:
            (self.out / f".part-{part.number:06}.parquet.1.tmp").write_bytes(b"PAR1")
            raise KeyboardInterrupt
        computed.append(part.number)
        return real(self, part)

    monkeypatch.setattr(Job, "compute", counted)
    with pytest.raises(KeyboardInterrupt):
        score(torn, many, on_this_machine(1), quiet)
    assert not (torn.out / "_SUCCESS").exists()
    computed.append(-1)
    assert score(torn, many, on_this_machine(1), quiet) == 180
    assert computed == [0, 1, -1, 2, 3, 4, 5]
    (torn.out / ".part-000002.parquet.1.tmp").unlink()
    assert files(torn.out) == files(whole.out)
    assert [row["user"] for row in result(torn.out)] == pq.read_table(many)["user"].to_pylist()


def test_a_real_kill(many: Path, entity_toy_repository: Path, tmp_path: Path) -> None:
    """kill -9 of the command and all its processes as soon as the first part is there; the second start ends it."""
    for k in range(20):
        write(many / f"more-{k:02}.parquet", EVERY * 50, 500)
    command = [sys.executable, "-m", "levi_serve.cli", "score", str(tmp_path / "out"), "--pairs", str(many)]
    command += ["--model-repo", str(entity_toy_repository), "--processes", "2"]
    first = subprocess.Popen(command, cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL)
    until(lambda: [*(tmp_path / "out").glob("part-*.parquet")] or first.poll() is not None)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout.startswith(f"{tmp_path / 'out'}: {180 + 20 * 50 * len(EVERY):,} pairs in ")
    found = [(row["user"], row["movie"]) for row in result(tmp_path / "out")]
    wanted = pq.read_table(many).to_pylist()
    assert found == [(row["user"], row["movie"]) for row in wanted]


def test_wrong_usage(
    run: Callable[..., tuple[int, str]], entity_toy_repository: Path, pair_toy_repository: Path, tmp_path: Path
) -> None:
    """One line each and exit code 2; nothing is written."""
    pairs = write(tmp_path / "pairs.parquet", EVERY)
    renamed = pq.read_table(pairs).rename_columns(["user", "film"])
    pq.write_table(renamed, tmp_path / "renamed.parquet")
    write(tmp_path / "text.parquet", [("x", 50)])
    write(tmp_path / "told.parquet", [(7, 50)], rating=[1.0])
    (tmp_path / "pairs.csv").write_text("user,movie\n7,50\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes").touch()
    here = ("--model-repo", entity_toy_repository)
    out = tmp_path / "out"
    for arguments, says in (
        ((out, *here), "give either --pairs or --top-k"),
        ((out, *here, "--pairs", pairs, "--top-k", 3), "give either --pairs or --top-k"),
        ((out, *here, "--pairs", tmp_path / "nothing"), "is no Parquet file"),
        ((out, *here, "--pairs", tmp_path / "pairs.csv"), "is no Parquet file"),
        ((out, *here, "--pairs", tmp_path / "empty"), "holds no *.parquet file"),
        ((out, *here, "--pairs", tmp_path / "renamed.parquet"), "has no column 'movie'; it has user, film"),
        ((out, *here, "--pairs", tmp_path / "text.parquet"), "column 'user' is string; ids are of type integer"),
        ((out, *here, "--pairs", tmp_path / "told.parquet"), "has a column 'rating' already"),
        ((tmp_path / "full", *here, "--pairs", pairs), "is not empty and holds no scoring job"),
        ((out, "--model-repo", pair_toy_repository, "--top-k", 3), "pair views"),
    ):
        code, said = run(*arguments)
        assert (code, len(said.splitlines())) == (2, 1)
        assert says in said
        assert not out.exists()


def test_another_job_in_the_same_folder(
    run: Callable[..., tuple[int, str]], entity_toy_repository: Path, tmp_path: Path
) -> None:
    """Other pairs, another number of items, another version: refused. The same job has nothing left to do."""
    pairs, here = write(tmp_path / "pairs.parquet", EVERY), ("--model-repo", entity_toy_repository)
    assert run(tmp_path / "out", *here, "--pairs", pairs)[0] == 0
    before = files(tmp_path / "out")
    assert run(tmp_path / "out", *here, "--pairs", pairs)[0] == 0
    assert files(tmp_path / "out") == before
    assert "begun with another top_k (None, not 3)" in run(tmp_path / "out", *here, "--top-k", 3)[1]
    other = write(tmp_path / "other.parquet", EVERY[:3])
    assert "begun with another input" in run(tmp_path / "out", *here, "--pairs", other)[1]
    begun = json.loads(before["job.json"])
    (tmp_path / "out/job.json").write_text(json.dumps({**begun, "version": 7}))
    assert "another version (7, not 1)" in run(tmp_path / "out", *here, "--pairs", pairs)[1]


@pytest.mark.filterwarnings("ignore")
def test_on_ray(many: Path, entity_toy_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers of a Ray cluster write the same files as one process; parts that are there stay."""
    pytest.importorskip("ray")
    from levi_serve.score_ray import on_ray

    monkeypatch.setattr(module, "_ROWS", 30)
    alone, spread = job(entity_toy_repository, tmp_path / "alone"), job(entity_toy_repository, tmp_path / "spread")
    for one in (alone, spread):
        score(one, many, on_this_machine(1), quiet)
    kept, *lost = sorted(spread.out.glob("*.parquet"))
    for part in lost:
        part.unlink()
    written = kept.stat().st_mtime_ns
    assert score(spread, many, on_ray("local", 2), quiet) == 180
    assert files(spread.out) == files(alone.out)
    assert kept.stat().st_mtime_ns == written


@pytest.fixture
def ray_head(tmp_path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Address of a cluster of one CPU, and what its users' environment holds."""
    pytest.importorskip("ray")
    address, told = f"127.0.0.1:{free_port()}", {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a" * 64}
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus", "1"]
    more = ["--port", address.rpartition(":")[2], "--include-dashboard", "false", "--node-ip-address", "127.0.0.1"]
    environment = {**os.environ, **told, "RAY_USAGE_STATS_ENABLED": "0"}
    with (tmp_path / "head.log").open("wb") as log:
        head = subprocess.Popen([*command, *more], env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        until(lambda: b"Ray runtime started" in (tmp_path / "head.log").read_bytes() or head.poll() is not None)
        yield address, told
    finally:
        os.killpg(head.pid, signal.SIGKILL)
        head.wait()


def test_on_a_cluster(
    ray_head: tuple[str, dict[str, str]],
    many: Path,
    entity_toy_repository: Path,
    tmp_path: Path,
) -> None:
    """More workers than it has CPUs do not wait for ever; who does not know its token is told so."""
    address, told = ray_head
    for k in range(3):
        write(many / f"more-{k}.parquet", EVERY)
    command = [sys.executable, "-m", "levi_serve.cli", "score", str(tmp_path / "spread"), "--pairs", str(many)]
    more = ["--model-repo", str(entity_toy_repository), "--ray", address, "--processes", "3"]

    def scored(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *more], env=environment, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
        )

    stranger = {name: value for name, value in os.environ.items() if name not in told}
    refused = scored(stranger)
    assert (refused.returncode, "the cluster wants its token" in refused.stderr) == (1, True), refused
    done = scored({**stranger, **told})
    assert done.returncode == 0, done
    alone = job(entity_toy_repository, tmp_path / "alone")
    score(alone, many, on_this_machine(1), quiet)
    assert files(tmp_path / "spread") == files(alone.out)


def test_a_ray_that_does_not_answer(
    run: Callable[..., tuple[int, str]], entity_toy_repository: Path, tmp_path: Path
) -> None:
    """One line and exit code 1."""
    pytest.importorskip("ray")
    pairs, address = write(tmp_path / "pairs.parquet", EVERY), f"127.0.0.1:{free_port()}"
    code, said = run(tmp_path / "out", "--model-repo", entity_toy_repository, "--pairs", pairs, "--ray", address)
    assert (code, len(said.splitlines())) == (1, 1)
    assert f"--ray {address}: no Ray cluster answers there" in said


def test_no_torch() -> None:
    """Scoring imports none of the libraries that only fitting needs, but for pyarrow."""
    code = "import sys, levi_serve.score; print(*(m for m in ('torch', 'pandas', 'training') if m in sys.modules))"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout.split() == []
