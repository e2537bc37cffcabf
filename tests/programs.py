"""What some tests need besides this project's own packages: there, or a reason to skip."""

from __future__ import annotations

import importlib
import os
import shutil
from typing import Any, NoReturn

import pytest


def program(*names: str) -> str:
    """The path of the first of these programs that is installed; without any the test is skipped."""
    for name in names:
        if found := shutil.which(name):
            return found
    return _missing(" or ".join(names))


def package(name: str) -> Any:
    """A Python package; without it the tests of the calling module are skipped."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return _missing(f"the Python package {name.partition('.')[0]}")


def _missing(what: str) -> NoReturn:
    """Skip, or fail where everything was to be installed."""
    message = f"{what} is not installed: `make test-system`, as root on Debian, installs it and runs this test"
    if "LEVI_SYSTEM" in os.environ:
        pytest.fail(message)
    pytest.skip(message, allow_module_level=True)
