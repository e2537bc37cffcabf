"""`levi-train` from the command line: what it prints, where it writes, and how it ends."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import pytest

from levi_serve.bundle.manifest import read_manifest
from training.cli import COMMANDS, main

if TYPE_CHECKING:
    from training.options import Options
    from training.run import Run

ROOT = Path(__file__).parents[1]


def flags(options: Options) -> list[str]:
    """The tiny fit as flags."""
    names = ("dataset", "data", "backbone", "epochs", "batch", "select")
    return [*(f"--{name}={getattr(options, name)}" for name in names), f"--learning-rate={options.learning_rate[0]}"]


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """What was said on standard error, which is a single line, and nothing else anywhere."""
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def test_fit(
    options: Options, entity_run: Run, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`fit` makes a run of the flags it was given, says how good it is, and does nothing the second time."""
    command = ["fit", *flags(options), f"--cache={cache}", f"--out={tmp_path / 'run'}", "--device", "cpu"]
    assert main(command) == 0
    captured = capsys.readouterr()
    record = json.loads((tmp_path / "run/run.json").read_text())
    best = f"validation RMSE {min(record['curve']):.4f} after {record['epochs']} epochs at 0.002, fitted in"
    assert captured.out.startswith(f"{tmp_path / 'run'}: {best}")
    assert captured.err == ""
    assert record["options"] == json.loads((entity_run.folder / "run.json").read_text())["options"]
    assert main(command) == 0
    assert capsys.readouterr().out == captured.out


def test_evaluate(entity_run: Run, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`evaluate` prints the table and writes metrics.json into the run."""
    run = shutil.copytree(entity_run.folder, tmp_path / "run")
    assert main(["evaluate", str(run), f"--cache={cache}", "--device=cpu"]) == 0
    text = capsys.readouterr().out
    assert "LEVI, entity views" in text
    assert "shrunk user mean" in text
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert f"{metrics['auroc_spread']:.3f}" in text


def test_export(
    entity_run: Run,
    entity_repository: Path,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`export` adds versions under the given name and prints their folders."""

    def ready(graph: object, _: object, path: Path) -> None:
        name = "levi_encoder" if type(graph).__name__ == "EncoderGraph" else "levi"
        onnx.save(onnx.load(entity_repository / name / "1/model.onnx"), path)

    monkeypatch.setattr("training.export.write_onnx", ready)  # tracing takes seconds
    repository = tmp_path / "repository"
    command = ["export", str(entity_run.folder), str(repository), f"--cache={cache}", "--parity-pairs", "10"]
    for version in (1, 2):
        assert main(command) == 0
        assert capsys.readouterr().out == f"{repository}/levi/{version}\n"
    assert main([*command, "--name", "films"]) == 0
    assert capsys.readouterr().out == f"{repository}/films/1\n"
    assert read_manifest(repository, "films", 1).name == "films"
    assert (repository / "films_encoder/1/model.onnx").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["dance"], "levi-train: there is no command 'dance'; there are fit, evaluate, export"),
        (["fit"], "levi-train fit: --out (or LEVI_OUT): Field required"),
        (["fit", "--out=x", "--colour=red"], "unrecognized arguments: --colour=red"),
        (["fit", "--out=x", "--epochs=0"], "--epochs (or LEVI_EPOCHS): Input should be greater than 0"),
        (["fit", "--out=x", "--batch=many"], "--batch (or LEVI_BATCH): Input should be a valid integer"),
        (["fit", "--out=x", "--seed=-1"], "--seed (or LEVI_SEED): Input should be greater than or equal to 0"),
        (["fit", "--out=x", "--hide-item=1"], "--hide-item (or LEVI_HIDE_ITEM): Input should be less than 1"),
        (["fit", "--out=x", "--learning-rate=-1"], "--learning-rate (or LEVI_LEARNING_RATE): Input should be greater"),
        (["fit", "--out=x", "--learning-rate=fast"], "--learning-rate (or LEVI_LEARNING_RATE): Input should be a"),
        (["fit", "--out=x", "--learning-rate=nan"], "--learning-rate (or LEVI_LEARNING_RATE): not a list of such"),
        (["fit", "--out=x", "--learning-rate=Infinity"], "--learning-rate (or LEVI_LEARNING_RATE): Input should be a"),
        (["fit", "--out=x", "--weight-decay=inf"], "--weight-decay (or LEVI_WEIGHT_DECAY): Input should be a finite"),
        (["fit", "--out=x", "--views=stereo"], "--views"),
        (["fit", "--out=x", "--size=huge"], "--size"),
        (["fit", "--out=x", "--select=user"], "--select"),
        (["fit", "--out=x", "--device=tpu"], "--device"),
        (["fit", "--out=x", "--env-file=nowhere"], "--env-file nowhere: No such file or directory"),
        (["fit", "--out=x", "--backbone=./nowhere"], "backbone ./nowhere: no such folder"),
        (["fit", "--out=x", "--weights=1,2"], "--weights 1,2: 2 weights for 3 layers"),
        (["evaluate"], "the following arguments are required: RUN"),
        (["evaluate", "nowhere"], "nowhere: holds no run"),
        (["export", "nowhere"], "the following arguments are required: REPOSITORY"),
        (["export", "nowhere", "model_repo"], "nowhere: holds no run"),
        (["export", "nowhere", "model_repo", "--name=../levi"], "--name (or LEVI_NAME): String should match pattern"),
        (
            ["export", "nowhere", "model_repo", "--parity-pairs=0"],
            "--parity-pairs (or LEVI_PARITY_PAIRS): Input should",
        ),
        (["download", "netflix", "--out=x"], "String should match pattern"),
    ],
)
def test_wrong_usage(
    options: Options,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    says: str,
) -> None:
    """Wrong usage of any command is one line that says what is wrong, exit code 2, and nothing written."""
    monkeypatch.chdir(tmp_path)
    for name in ("dataset", "data", "backbone"):
        monkeypatch.setenv(f"LEVI_{name.upper()}", str(getattr(options, name)))
    if arguments[0] == "evaluate":
        monkeypatch.delenv("LEVI_DATA")
    monkeypatch.setenv("LEVI_CACHE", str(cache))
    assert main(arguments) == 2
    assert says in one_line(capsys)
    assert list(tmp_path.iterdir()) == []


def test_settings_come_from_everywhere(
    options: Options, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A fit reads its flags, then LEVI_… variables, then the file given, and its record says what came of it."""
    (tmp_path / "env").write_text("LEVI_EPOCHS=7\nLEVI_BATCH=300\nLEVI_VIEWS=none\nLEVI_LEARNING_RATE=[0.01]\n")
    monkeypatch.setenv("LEVI_BATCH", "200")
    monkeypatch.setenv("LEVI_EPOCHS", "5")
    source = flags(options)[:3]
    where = [f"--cache={cache}", f"--out={tmp_path / 'run'}", f"--env-file={tmp_path / 'env'}"]
    assert main(["fit", *source, *where, "--epochs=1", "--device=cpu"]) == 0
    assert "after 1 epochs at 0.01" in capsys.readouterr().out
    found = json.loads((tmp_path / "run/run.json").read_text())["options"]
    assert (found["epochs"], found["batch"], found["views"], found["seed"]) == (1, 200, "none", 0)


def test_failures_while_running(
    options: Options, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A fit that diverges, cannot write or has no place to write exits 1 with one line, and leaves nothing finished."""
    command = ["fit", *flags(options), "--device=cpu"]
    assert main([*command, f"--cache={cache}", f"--out={tmp_path / 'a'}", "--learning-rate=1e30"]) == 1
    assert one_line(capsys).endswith("try a lower --learning-rate\n")
    (tmp_path / "file").write_text("")
    assert main([*command, f"--cache={tmp_path / 'file'}", f"--out={tmp_path / 'b'}"]) == 1
    assert str(tmp_path / "file") in one_line(capsys)
    assert main([*command, f"--cache={cache}", f"--out={tmp_path / 'file/run'}"]) == 1
    assert str(tmp_path / "file/run") in one_line(capsys)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("training.checkpoint.save_file", full)
    assert main([*command, f"--cache={cache}", f"--out={tmp_path / 'c'}"]) == 1
    line = one_line(capsys)
    assert line.startswith(f"levi-train fit: {tmp_path / 'c'}/stages/")
    assert line.endswith("cannot be written ([Errno 28] No space left on device)\n")
    assert not list(tmp_path.rglob("run.json"))
    assert main(["evaluate", str(tmp_path / "c")]) == 2
    assert "was begun but not finished; run the same fit again" in one_line(capsys)


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`--help` of every command exits 0 and explains each of its flags and arguments."""
    with pytest.raises(SystemExit) as ending:
        main([command, "--help"])
    assert ending.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for name, field in COMMANDS[command].model_fields.items():
        assert field.description, name
        assert f"--{name.replace('_', '-')}" in text or name.upper() in text
        assert field.description.split()[0] in text


def test_overview(capsys: pytest.CaptureFixture[str]) -> None:
    """`levi-train --help` lists every command and exits 0."""
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n  {name} " in text for name in COMMANDS)


def test_help_does_not_wait_for_torch() -> None:
    """Help and wrong usage are answered without importing what only the work needs."""
    code = (
        "import sys\n"
        "from training.cli import main\n"
        "assert main(['--help']) == 0\n"
        "assert main(['fit', '--epochs', '0']) == 2\n"
        "print(*(m for m in ('torch', 'transformers', 'pyarrow', 'sklearn') if m in sys.modules), file=sys.stderr)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stderr.splitlines()[1:] == [""]
