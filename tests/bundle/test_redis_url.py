"""levi_serve.bundle.redis_url: what is a URL of Redis, and what is shown of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from levi_serve.bundle.redis_url import check_redis_url, is_cluster, node_url, shown


@pytest.mark.parametrize(
    ("url", "node", "cluster"),
    [
        ("redis://h", "redis://h", False),
        ("redis://h:6379/3", "redis://h:6379/3", False),
        ("redis://u:p%40@[::1]:6379/", "redis://u:p%40@[::1]:6379/", False),
        ("rediss://h:6380?ssl_cert_reqs=none", "rediss://h:6380?ssl_cert_reqs=none", False),
        ("unix:///run/redis.sock?db=1", "unix:///run/redis.sock?db=1", False),
        ("redis+cluster://h:7000", "redis://h:7000", True),
        ("rediss+cluster://u:p@h:7000/0", "rediss://u:p@h:7000/0", True),
    ],
)
def test_good(url: str, node: str, cluster: bool) -> None:
    """Each kind of URL is accepted as it is, and leads clients to its node."""
    assert check_redis_url(url) == url
    assert node_url(url) == node
    assert is_cluster(url) == cluster


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("", "starts with redis://"),
        ("localhost:6379", "starts with redis://"),
        ("http://h:6379", "starts with redis://"),
        ("REDIS://h", "starts with redis://"),
        ("redis+sentinel://h", "or unix://"),
        ("redis://", "names no host"),
        ("redis://:6379", "names no host"),
        ("redis://h:0", "no port"),
        ("redis://h:x", "cannot be read"),
        ("redis://h:70000", "cannot be read"),
        ("redis://[h", "cannot be read"),
        ("redis://h/users", "no database"),
        ("redis://h/1/2", "no database"),
        ("redis://h/²", "no database"),
        ("redis+cluster://h/1", "no databases but 0"),
        ("redis://u:se#cret@h", "%23"),
        ("unix://run/redis.sock", "unix:///run/redis.sock"),
        ("unix://", "by its path"),
        ("redis://h?protocol=2", "none of redis://'s: none"),
        ("redis://h?ssl_ca_certs=x", "none of redis://'s"),
        ("rediss://h?socket_timeout=99", "none of rediss://'s: ssl_ca_certs, "),
        ("rediss://h?ssl_ca_certs=/nowhere.pem", "/nowhere.pem: there is no such file"),
        ("unix:///run/redis.sock?db=x", "db=x: is no number"),
    ],
)
def test_bad(url: str, says: str) -> None:
    """What is wrong is said."""
    with pytest.raises(ValueError, match=r".") as caught:
        check_redis_url(url)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "url", ["redis://u:secret@h/x", "http://u:secret@h", *(f"redis://u:1{mark}cret@h:1" for mark in "#?/")]
)
def test_a_complaint_does_not_tell_the_password(url: str) -> None:
    """Errors end in logs."""
    with pytest.raises(ValueError, match=r".") as caught:
        check_redis_url(url)
    assert "cret" not in str(caught.value)


def test_certificates(tmp_path: Path) -> None:
    """Files of certificates that are there are accepted."""
    (tmp_path / "ca.pem").touch()
    assert check_redis_url(f"rediss://h?ssl_ca_certs={tmp_path / 'ca.pem'}")


@pytest.mark.parametrize(
    ("url", "seen"),
    [
        ("redis://u:secret@h:6379/3", "redis://h:6379/3"),
        ("rediss://:s%40crET@h?ssl_cert_reqs=none", "rediss://h"),
        ("redis+cluster://:a@b@h:1", "redis+cluster://h:1"),
        ("unix:///run/redis.sock?password=secret", "unix:///run/redis.sock"),
    ],
)
def test_shown(url: str, seen: str) -> None:
    """Neither user nor password nor options are shown."""
    assert shown(url) == seen
