"""levi_serve.replay and the command: a file of requests through model and monitor."""

from __future__ import annotations

import codecs
import json
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from levi_serve.bundle.commands import UsageError
from levi_serve.cli import main
from levi_serve.replay import read_requests

from .toy import USERS, Toy, schema

MANY = USERS | {number: {"age": 20 + number % 40} for number in range(2000, 2400)}


@pytest.fixture
def crowd(tmp_path: Path) -> Path:
    Toy("entity", users=MANY).write(tmp_path / "repo")
    return tmp_path / "repo"


def test_both_kinds_of_files(tmp_path: Path) -> None:
    """JSON lines and CSV give the same requests; a new entity is told by its attributes in JSON only."""
    lines, sheet = tmp_path / "r.jsonl", tmp_path / "r.csv"
    lines.write_text('{"user": 138, "movie": 357, "rating": 4}\n\n{"user": 7, "movie": 50}\n')
    sheet.write_text("movie,rating,user\n357,4,138\n50,,7\n")
    found = list(read_requests(lines, schema()))
    assert found == [((138, 357), 4.0), ((7, 50), None)]
    assert list(read_requests(sheet, schema())) == found
    for file in (lines, sheet):
        file.write_bytes(codecs.BOM_UTF8 + file.read_bytes())
        assert list(read_requests(file, schema())) == found
    lines.write_text('{"user": 138, "movie": 357, "rating": 4, "id": "a", "time": 1.5, "prediction_id": "b"}')
    assert list(read_requests(lines, schema())) == found[:1]
    lines.write_text('{"user": {"age": 3}, "movie": {"genres": ["War"]}}')
    assert list(read_requests(lines, schema())) == [(({"age": 3}, {"genres": ("War",)}), None)]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("r.jsonl", '{"user": 1, "movie": 2}\n\n{"user": 1}', "line 3: movie: is missing"),
        ("r.jsonl", "nonsense", "line 1 is not JSON"),
        ("r.jsonl", "[1, 2]", "line 1: body: should be"),
        ("r.jsonl", '{"user": "x", "movie": 2}', "line 1: user: should be an integer of at most 64 bits"),
        ("r.jsonl", '{"user": null, "movie": 2}', "line 1: user: should be an integer"),
        ("r.jsonl", '{"user": 138.7, "movie": 2}', "line 1: user: should be an integer"),
        ("r.jsonl", '{"user": 9223372036854775808, "movie": 2}', "line 1: user: should be an integer of at most 64"),
        ("r.jsonl", '{"user": {"age": "old"}, "movie": 2}', "line 1: user.age: should be a finite number"),
        ("r.jsonl", '{"user": {"height": 2}, "movie": 2}', "line 1: user.height: is unknown; known here: age, occ"),
        ("r.jsonl", '{"user": 1, "movie": 2, "rateing": 2}', "line 1: rateing: is unknown"),
        ("r.jsonl", '{"user": 1, "movie": 2, "rating": NaN}', "line 1: rating: should be a finite number"),
        ("r.jsonl", '{"user": 1, "movie": 2, "rating": 400}', "line 1: rating: should be less than or equal to 5"),
        ("r.jsonl", '{"user": 1, "movie": 2, "rating": "good"}', "line 1: rating: should be a valid number"),
        ("r.jsonl", b'{"user": 1, "movie": "\xff"}', "line 1 is not JSON"),
        ("r.jsonl", "\n\n", "has no requests; a line has user, movie and"),
        ("r.csv", "", "has no requests"),
        ("r.csv", "user,movie\n", "has no requests"),
        ("r.csv", "user,film\n1,2\n", "line 2: movie: is missing"),
        ("r.csv", "user,movie\n1\n", "line 2: movie: is missing"),
        ("r.csv", "user,movie\n1,2,3\n", "line 2: a value without a column: is unknown"),
        ("r.csv", "user,movie\n1,99999999999999999999\n", "line 2: movie: should be an integer of at most 64"),
        ("r.csv", "user,movie,rating\n1,2,3\n1,2,nan\n", "line 3: rating: should be a finite number"),
        ("r.csv", "user,movie,rating\n1,2,good\n", "line 2: rating: should be a valid number"),
        ("r.csv", b"user,movie\n1,2\n1,\xff\n", "line 3: movie: should be an integer"),
        ("r.csv", 'user,movie\n1,2\n1,"2\n', "what follows line 2 is not CSV"),
        ("absent", None, "No such file or directory; name a file"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, text: str | bytes | None, says: str) -> None:
    """What is no request is told with the file, the line, and what to do, in one line."""
    if text is not None:
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UsageError) as caught:
        list(read_requests(tmp_path / name, schema()))
    said = str(caught.value)
    assert said.startswith(f"{tmp_path / name}: {says}"), said
    assert ";" in said
    assert "\n" not in said


def test_texts_as_ids(tmp_path: Path) -> None:
    """Ids that are texts stay what they are in both kinds of files; bytes that are no text are told."""
    sheet = tmp_path / "r.csv"
    sheet.write_text("user,movie\n007,1e3\n")
    assert list(read_requests(sheet, schema("string"))) == [(("007", "1e3"), None)]
    sheet.write_bytes(b"user,movie\n1,\xff\n")
    with pytest.raises(UsageError, match="line 2: movie: should be a valid string"):
        list(read_requests(sheet, schema("string")))


@pytest.mark.parametrize("plot", ["", "absent/evidence.svg", "requests.jsonl/evidence.svg"])
def test_a_picture_that_cannot_be(
    crowd: Path, tmp_path: Path, plot: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no picture can be written, the command ends before it reads a request."""
    file = tmp_path / "requests.jsonl"
    file.write_text("nonsense")
    command = ["levi-serve", "replay", str(file), "--model-repo", str(crowd), "--plot", str(tmp_path / plot)]
    monkeypatch.setattr(sys, "argv", command)
    assert main() == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert f"--plot {tmp_path / plot}: " in said
    assert "name a file that can be written" in said


def test_a_bad_line_ends_the_command(
    crowd: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With code 2 and one line; the picture that is there is left as it is, and none is begun."""
    file, old, new = tmp_path / "requests.jsonl", tmp_path / "old.svg", tmp_path / "new.svg"
    file.write_text('{"user": {"age": "old"}, "movie": 357}')
    old.write_text("old")
    for plot in (old, new):
        command = ["levi-serve", "replay", str(file), "--model-repo", str(crowd), "--plot", str(plot)]
        monkeypatch.setattr(sys, "argv", command)
        assert main() == 2
        assert "line 1: user.age: should be a finite number" in capsys.readouterr().err.splitlines()[-1]
    assert old.read_text() == "old"
    assert not new.exists()


def test_command(
    crowd: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table has the alarms, the requests without an answer and the true error; the picture is sound."""
    requests = [{"user": number, "movie": 357, "rating": 3} for number in range(2000, 2400)]
    requests.insert(5, {"user": 4711, "movie": 357, "rating": 3})
    file = tmp_path / "requests.jsonl"
    file.write_text("".join(json.dumps(request) + "\n" for request in requests))
    picture = tmp_path / "evidence.svg"
    command = ["levi-serve", "replay", str(file), "--model-repo", str(crowd), "--plot", str(picture)]
    monkeypatch.setattr(sys, "argv", command)
    assert main() == 0
    said = capsys.readouterr().out
    assert "ALARM: " in said
    assert "401 requests, 1 of them without an answer" in said
    assert len(said.splitlines()) < 40
    root = ElementTree.fromstring(picture.read_text())
    assert len(root.findall("{http://www.w3.org/2000/svg}polyline")) == 1


def test_command_monitor(crowd: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Two servers that count the same shift raise one alarm, which ends the command with code 1."""
    from levi_serve import replicas
    from levi_serve.metrics import Metrics
    from levi_serve.versions import read_version_reference

    metrics = Metrics()
    metrics.serving("levi", 1, "entity")
    scores = (*read_version_reference(crowd, "levi", 1).names, "new_user", "new_item")
    readings = iter(range(9))

    def read(urls: list[str], *_: object) -> dict[str, str]:
        count = 64 * next(readings)
        lines = [
            f'levi_monitor_score_bin_total{{score="{score}",bin="{b}"}} {count if b == 19 else 0}'
            for score in scores
            for b in range(20)
        ]
        text = metrics.text().decode().replace("# EOF", "")
        return dict.fromkeys(urls, text + "# TYPE levi_monitor_score_bin_total counter\n" + "\n".join(lines) + "\n")

    monkeypatch.setattr(replicas, "read_metrics", read)
    urls = ["http://127.0.0.1:1", "http://127.0.0.1:2"]
    monkeypatch.setattr(sys, "argv", ["levi-serve", "monitor", *urls, "--model-repo", str(crowd), "--every-s", "0.01"])
    assert main() == 1
    said = capsys.readouterr()
    assert "shift alarm: " in said.err
    assert "128 predictions, evidence" in said.out


def test_monitor_overwrites_nothing_else(
    crowd: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that was named for the state by mistake is refused, with one line and code 2, and stays as it is."""
    from levi_serve import replicas

    def read(*_: object) -> None:
        raise KeyboardInterrupt  # it would go on for ever

    monkeypatch.setattr(replicas, "read_metrics", read)
    letter = tmp_path / "letter.txt"
    letter.write_text("Dear all,\n")
    arguments = ["monitor", "http://127.0.0.1:1", "--model-repo", str(crowd), "--state", str(letter)]
    monkeypatch.setattr(sys, "argv", ["levi-serve", *arguments])
    assert main() == 2
    said = capsys.readouterr().err
    assert said.startswith(f"levi-serve monitor: --state {letter}: is no monitor's state")
    assert said.count("\n") == 1
    assert letter.read_text() == "Dear all,\n"


def test_usage(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A URL that is none and a missing file are errors of usage."""
    for command in (["monitor", "ftp://x"], ["monitor"], ["replay"]):
        monkeypatch.setattr(sys, "argv", ["levi-serve", *command])
        assert main() == 2
