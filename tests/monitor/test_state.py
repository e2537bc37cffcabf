"""levi_serve.monitor.state: what survives a kill, a restart, damage and other processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from levi_serve.bundle.commands import RunError, UsageError
from levi_serve.bundle.reference import Reference
from levi_serve.monitor.detector import Detector, record_type
from levi_serve.monitor.state import State, owner_of, require_state
from levi_serve.monitor.streams import threshold

OWNER = b"model a"


def opened(detector: Detector, path: Path, owner: bytes = OWNER) -> State:
    return State(detector, owner, path)


def bump(state: State, to: int) -> None:
    with state.change() as record:
        record["blocks"] = to


def test_a_restart_finds_it(detector: Detector, tmp_path: Path) -> None:
    """What was changed is there when the file is opened again."""
    state = opened(detector, tmp_path / "state")
    for value in range(5):
        bump(state, value)
    state.close()
    assert opened(detector, tmp_path / "state").read()["blocks"] == 4


def test_without_a_file(detector: Detector) -> None:
    """A process alone keeps it in memory."""
    state = State(detector, OWNER)
    bump(state, 7)
    assert state.read()["blocks"] == 7


def test_two_processes_see_the_same(detector: Detector, tmp_path: Path) -> None:
    """A second opening of the file sees every change of the first, and the other way round."""
    one, two = opened(detector, tmp_path / "state"), opened(detector, tmp_path / "state")
    bump(one, 1)
    assert two.read()["blocks"] == 1
    bump(two, 2)
    assert one.read()["blocks"] == 2


def test_nobody_waits_for_a_change(detector: Detector, tmp_path: Path) -> None:
    """While one changes it, another that will not wait is told so at once."""
    one, two = opened(detector, tmp_path / "state"), opened(detector, tmp_path / "state")
    with one.change():
        with two.try_change() as record:
            assert record is None
        with one.try_change() as record:
            assert record is None
    with two.try_change() as record:
        assert record is not None


def test_what_fails_changes_nothing(detector: Detector, tmp_path: Path) -> None:
    """An error inside a change leaves the record as it was, and the lock free."""
    state = opened(detector, tmp_path / "state")

    def fail() -> None:
        with state.change() as record:
            record["blocks"] = 9
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        fail()
    assert state.read()["blocks"] == 0
    bump(state, 1)


def _die_inside(detector: Detector, path: Path) -> None:
    state = opened(detector, path)
    with state.change() as record:
        record["blocks"] = 99
        at = 64 + int(record["sequence"] + 1) % 2 * detector.dtype.itemsize
        state._map[at : at + 500] = record.tobytes()[:500]  # half of the new copy is written
        os.kill(os.getpid(), signal.SIGKILL)


def test_killed_in_the_middle(detector: Detector, tmp_path: Path) -> None:
    """A process that is killed while it writes leaves the last whole record, and no lock."""
    state = opened(detector, tmp_path / "state")
    bump(state, 3)
    process = multiprocessing.get_context("fork").Process(target=_die_inside, args=(detector, tmp_path / "state"))
    process.start()
    process.join(10)
    assert process.exitcode == -signal.SIGKILL
    assert state.read()["blocks"] == 3
    bump(state, 4)
    assert opened(detector, tmp_path / "state").read()["blocks"] == 4


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda raw: b"x" * len(raw), "is damaged or no monitor's state"),
        (lambda raw: b"short", "is damaged or no monitor's state"),
        (lambda raw: raw[:64] + bytes(len(raw) - 64), "is damaged"),
        (lambda raw: raw[: len(raw) // 4], "is damaged"),
    ],
)
def test_damage(
    detector: Detector, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: object, said: str
) -> None:
    """A file that is no state is begun anew, and the log says so."""
    path = tmp_path / "state"
    state = opened(detector, path)
    bump(state, 5)
    state.close()
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    assert opened(detector, path).read()["blocks"] == 0
    assert f"{path} {said}: beginning anew" in caplog.text


def test_one_damaged_copy(detector: Detector, tmp_path: Path) -> None:
    """With one copy damaged, the other one is used."""
    path = tmp_path / "state"
    state = opened(detector, path)
    bump(state, 1)
    bump(state, 2)
    newest = 64 + int(state.read()["sequence"]) % 2 * detector.dtype.itemsize
    state.close()
    raw = bytearray(path.read_bytes())
    raw[newest + 20] ^= 1
    path.write_bytes(raw)
    assert opened(detector, path).read()["blocks"] == 1


def test_another_model(detector: Detector, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The evidence against one model is none against another."""
    state = opened(detector, tmp_path / "state")
    bump(state, 5)
    state.close()
    assert opened(detector, tmp_path / "state", b"model b").read()["blocks"] == 0
    assert "belongs to another model: beginning anew" in caplog.text


def test_damaged_while_in_use(detector: Detector, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file that somebody overwrites does not stop the server."""
    state = opened(detector, tmp_path / "state")
    state._map[64:] = bytes(len(state._map) - 64)
    assert state.read()["blocks"] == 0
    assert "was damaged while it was in use" in caplog.text
    bump(state, 1)
    assert state.read()["blocks"] == 1


def test_a_path_that_cannot_be(detector: Detector, tmp_path: Path) -> None:
    """A folder in the file's place is an error of the start."""
    with pytest.raises(RunError, match="Is a directory"):
        opened(detector, tmp_path)


def test_a_longer_record_of_the_same_owner(reference: Reference, detector: Detector, tmp_path: Path) -> None:
    """A file of another size is begun anew."""
    opened(detector, tmp_path / "state").close()
    fewer = Detector.of(reference, threshold(1, 1), new=False)
    assert opened(fewer, tmp_path / "state").read()["blocks"] == 0


@pytest.mark.parametrize("content", [b"a letter, or whatever it was\n" * 9, b"x", b"LEVIMO"])
def test_a_named_file_that_is_something_else(tmp_path: Path, content: bytes) -> None:
    """A file that somebody has named is refused, and left as it is, if it is no monitor's state."""
    path = tmp_path / "letter"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="letter: is no monitor's state"):
        require_state(path)
    assert path.read_bytes() == content


def test_a_named_file_that_is_a_state(detector: Detector, tmp_path: Path) -> None:
    """A new file, an empty one, one that was made and not begun, a state and a damaged one are taken."""
    path = tmp_path / "state"
    require_state(path)
    for content in (b"", bytes(4000)):
        path.write_bytes(content)
        require_state(path)
    path.unlink()
    opened(detector, path).close()
    require_state(path)
    path.write_bytes(path.read_bytes()[:100])
    require_state(path)


def test_whose_evidence_it_is(reference: Reference, detector: Detector) -> None:
    """The owner changes with the graph, with where the bins begin, and with what the record's numbers are about."""
    moved = replace(reference, edges=reference.edges + np.float32(0.01))
    others = [
        owner_of(replace(reference, model="1" * 64), detector),
        owner_of(moved, detector),
        owner_of(reference, Detector.of(reference, threshold(30, 1000), new=False)),
        owner_of(reference, replace(detector, dtype=record_type(detector.streams, heads=9))),
        owner_of(
            reference, replace(detector, streams=replace(detector.streams, streams=detector.streams.streams[::-1]))
        ),
    ]
    assert owner_of(reference, detector) == owner_of(reference, Detector.of(reference, threshold(1, 1)))
    assert len({owner_of(reference, detector), *others}) == 6
