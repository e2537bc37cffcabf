"""levi_serve.bundle.commands: where a setting's value comes from, and how a command ends."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import Field, field_validator

from levi_serve.bundle.commands import Command, RunError, UsageError, run

ended: list[Brew | Clean] = []


class Brew(Command):
    """Make coffee."""

    cups: Annotated[int, Field(ge=1, description="How many.")] = 1
    bean_type: str = "arabica"
    milk: bool = False
    rates: tuple[float, ...] = (1.0,)
    sugar: int | None = None

    @field_validator("bean_type")
    @classmethod
    def _coffee(cls, value: str) -> str:
        if value == "tea":
            raise ValueError("that is no coffee")
        return value

    def __call__(self) -> None:
        """Note that it ran."""
        ended.append(self)


class Clean(Command):
    """Clean up.

    This line is not part of the overview.
    """

    def __call__(self) -> None:
        """Note that it ran."""
        ended.append(self)


@pytest.fixture(autouse=True)
def _forget() -> None:
    ended.clear()


def kitchen(*arguments: str, default: str | None = None) -> int:
    return run("kitchen", "Runs a kitchen.", {"brew": Brew, "clean": Clean}, arguments, default)


def brewed(*arguments: str) -> Brew:
    """The settings that a command line leads to."""
    assert kitchen("brew", *arguments) == 0
    command = ended.pop()
    assert isinstance(command, Brew)
    return command


def test_precedence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A flag wins over the environment, the environment over the file, the file over the default."""
    (tmp_path / "env").write_text("LEVI_CUPS=2\nLEVI_BEAN_TYPE=robusta\nLEVI_MILK=true\nOTHER=1\nLEVI_OTHER=1\n")
    file = ["--env-file", str(tmp_path / "env")]
    assert brewed().cups == 1
    assert (brewed(*file).cups, brewed(*file).bean_type, brewed(*file).milk) == (2, "robusta", True)
    monkeypatch.setenv("LEVI_CUPS", "3")
    assert brewed().cups == brewed(*file).cups == 3
    assert brewed(*file).bean_type == "robusta"
    assert brewed(*file, "--cups", "4").cups == brewed("--cups=4", *file).cups == 4
    assert brewed(f"--env-file={tmp_path / 'env'}", "--no-milk").milk is False


def test_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flags are the fields in kebab case; a list is a flag given often, or commas, or JSON in the environment."""
    assert brewed("--bean-type", "robusta", "--milk") == Brew.model_construct(bean_type="robusta", milk=True)
    assert brewed("--rates", "0.5", "--rates", "2").rates == brewed("--rates", "0.5,2").rates == (0.5, 2)
    monkeypatch.setenv("LEVI_RATES", "[0.25, 4]")
    assert brewed().rates == (0.25, 4)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["dance"], "kitchen: there is no command 'dance'; there are brew, clean"),
        (["brew", "--colour", "red"], "kitchen brew: unrecognized arguments: --colour red"),
        (["brew", "red"], "kitchen brew: unrecognized arguments: red"),
        (["brew", "--cups"], "kitchen brew: argument --cups: expected one argument"),
        (["brew", "--cups", "many"], "kitchen brew: --cups (or LEVI_CUPS): Input should be a valid integer"),
        (["brew", "--cups", "0"], "--cups (or LEVI_CUPS): Input should be greater than or equal to 1"),
        (["brew", "--bean-type", "tea"], "kitchen brew: --bean-type (or LEVI_BEAN_TYPE): that is no coffee (see"),
        (["brew", "--cups", "0", "--bean-type", "tea"], "or equal to 1; --bean-type (or LEVI_BEAN_TYPE): that is no"),
        (["brew", "--env-file"], "kitchen brew: --env-file: names no file"),
        (["brew", "--env-file", "nowhere/env"], "--env-file nowhere/env: No such file or directory"),
        (["brew", "--env-file", "."], "--env-file .: Is a directory"),
    ],
)
def test_wrong_usage(capsys: pytest.CaptureFixture[str], arguments: list[str], says: str) -> None:
    """Wrong usage is one line that names the flag, exit code 2, and no work."""
    assert kitchen(*arguments) == 2
    captured = capsys.readouterr()
    assert says in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert not ended


@pytest.mark.parametrize("content", [b"LEVI_CUPS=\xff\n", b"LEVI_CUPS=many\n", b"LEVI_RATES=[1\n", b"LEVI_RATES=1,x\n"])
def test_wrong_env_file(capsys: pytest.CaptureFixture[str], tmp_path: Path, content: bytes) -> None:
    """A settings file that is no text, or holds a value that does not fit, is one line and exit code 2."""
    (tmp_path / "env").write_bytes(content)
    assert kitchen("brew", "--env-file", str(tmp_path / "env")) == 2
    error = capsys.readouterr().err
    assert error.startswith("kitchen brew: --")
    assert error.count("\n") == 1


def test_wrong_environment(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong variable of the environment is named as such."""
    monkeypatch.setenv("LEVI_CUPS", "many")
    assert kitchen("brew") == 2
    assert "--cups (or LEVI_CUPS): Input should be a valid integer" in capsys.readouterr().err


def raises(error: BaseException) -> Callable[[Brew], None]:
    def call(self: Brew) -> None:
        raise error

    return call


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (UsageError("the beans\nare green"), 2, "kitchen brew: the beans are green (see kitchen brew --help)\n"),
        (RunError("the machine\n  broke"), 1, "kitchen brew: the machine broke\n"),
        (OSError(28, "No space left on device", "cup"), 1, "kitchen brew: [Errno 28] No space left on device: 'cup'\n"),
        (MemoryError(), 1, "kitchen brew: MemoryError\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_failures(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
    says: str,
) -> None:
    """What was asked wrongly exits 2, what failed at run time 1, each with one line; an interrupt is silent."""
    monkeypatch.setattr(Brew, "__call__", raises(error))
    assert kitchen("brew") == code
    assert capsys.readouterr().err == says


def test_a_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that nobody foresaw keeps its traceback."""
    monkeypatch.setattr(Brew, "__call__", raises(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        kitchen("brew")


@pytest.mark.parametrize(("arguments", "code"), [([], 2), (["--help"], 0), (["-h"], 0)])
def test_overview(capsys: pytest.CaptureFixture[str], arguments: list[str], code: int) -> None:
    """Without a command, and with --help, every command is listed by its docstring's first line."""
    assert kitchen(*arguments) == code
    text = capsys.readouterr().out
    assert "brew         Make coffee.\n" in text
    assert "clean        Clean up.\n" in text
    assert "not part" not in text


def test_help_of_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    """`--help` of a command explains its flags and exits 0."""
    with pytest.raises(SystemExit) as ending:
        kitchen("brew", "--help")
    assert ending.value.code == 0
    text = capsys.readouterr().out
    assert "usage: kitchen brew" in text
    assert "--bean-type" in text
    assert "How many." in text


def test_default_command(capsys: pytest.CaptureFixture[str]) -> None:
    """A program with a default command runs it without its name; a wrong name is still wrong."""
    assert kitchen(default="brew") == kitchen("--cups", "2", default="brew") == kitchen("clean", default="brew") == 0
    assert [type(command) for command in ended] == [Brew, Brew, Clean]
    assert kitchen("dance", default="brew") == 2
    assert kitchen("--colour", "red", default="brew") == 2
    assert "kitchen: unrecognized arguments: --colour red (see kitchen --help)\n" in capsys.readouterr().err
