"""MovieLens-100K from GroupLens, asked for by its user and checked file by file."""

from __future__ import annotations

import hashlib
import http.client
import io
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path

from training.errors import RunError, UsageError

URL = "https://files.grouplens.org/datasets/movielens/ml-100k.zip"
LICENCE = (
    "MovieLens-100K belongs to GroupLens, University of Minnesota. In short: for research; no redistribution and no "
    "commercial use without their permission; publications cite Harper and Konstan (2015), DOI 10.1145/2827872; "
    "no endorsement may be claimed. The README beside the data has the terms in full."
)

_SHA256 = {
    "u.data": "06416e597f82b7342361e41163890c81036900f418ad91315590814211dca490",
    "u.item": "553841ebc7de3a0fd0d6b62a204ea30c1e651aacfb2814c7a6584ac52f2c5701",
    "u.user": "f120e114da2e8cf314fd28f99417c94ae9ddf1cb6db8ce0e4b5995d40e90e62c",
    "u.genre": "9757e0d3e6b298159a80dd48eaf938114690e911e39af97a76949ef1663610bb",
    "u.occupation": "cd5fbec9afe345d993a62fc7817df1a4a9079c4feb267b3118763b8fd942137d",
    "u.info": "5b0a40b2e47a729ee6203063f6dcf8790c2e63f5a18663e6ee318a72c5f3c27b",
    "README": "4883b8cf340ed0059971b33f56ad3adc88a40792108ebca3d24aafc4c82e8b52",
}
_MOST_BYTES = 64 << 20  # the archive has 5 MB; a wrong address may have no end


def download_ml100k(target: Path, say: Callable[[str], None] = print, url: str = URL, timeout: float = 30.0) -> None:
    """Fetch the archive (`timeout` seconds without an answer are a failure) and make the folder `target` of its files.

    The folder appears complete or not at all. Raises UsageError if it is there already, RunError if the host cannot be
    reached or what it sends is not MovieLens-100K.
    """
    if target.exists():
        raise UsageError(f"{target} is there already; use it with --data, or name another folder")
    say(LICENCE)
    files = _verified(_fetch(url, timeout), url)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
            folder = Path(scratch) / "complete"
            folder.mkdir()
            for name, content in files.items():
                (folder / name).write_bytes(content)
            folder.rename(target)
    except OSError as error:
        raise RunError(f"{target} cannot be written: {error.strerror}; nothing was left there") from error


def _fetch(url: str, timeout: float) -> bytes:
    if not url.startswith(("https://", "http://")):
        raise UsageError(f"{url} is no http address")
    try:
        with urllib.request.urlopen(url, timeout=timeout) as answer:  # noqa: S310 (the scheme was checked)
            content: bytes = answer.read(_MOST_BYTES + 1)
            if answer.length and len(content) <= _MOST_BYTES:  # a bounded read is silent about a cut transfer
                raise http.client.IncompleteRead(content, answer.length)
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # it is the answer itself, still open
        raise RunError(
            f"{url} cannot be fetched ({error}); get ml-100k.zip elsewhere, unpack it and give its folder with --data"
        ) from error
    if len(content) > _MOST_BYTES:
        raise RunError(f"{url} sends more than {_MOST_BYTES >> 20} MiB; this is not MovieLens-100K")
    return content


def _verified(archive: bytes, url: str) -> dict[str, bytes]:
    """The files that the loader needs. Only names known here are read, so no name in the archive becomes a path."""
    files = {}
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as opened:
            for name in _SHA256:
                with opened.open(f"ml-100k/{name}") as member:
                    files[name] = member.read(_MOST_BYTES)
    except Exception as error:  # a damaged archive makes zipfile raise a dozen kinds
        raise RunError(f"{url} is not the archive of MovieLens-100K ({error}); try again later") from error
    for name, content in files.items():
        if hashlib.sha256(content).hexdigest() != _SHA256[name]:
            raise RunError(f"{url}: {name} is not GroupLens' file (its SHA-256 differs); nothing was kept, try again")
    return files
