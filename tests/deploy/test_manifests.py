"""deploy/: manifests that a cluster would take, that fit together, and that ask for no more than the server needs."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from levi_serve.cli import Serve
from tests.programs import program
from tests.serving.conftest import ROOT, until
from tests.serving.running import RunningApp
from tests.serving.toy import Toy
from training import cli as fitting

KUBERNETES = ROOT / "deploy/kubernetes"
APPLIED = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())["resources"]
BIN = Path(sys.executable).parent
NOBODY = 10001


def documents(*names: str) -> list[dict[str, Any]]:
    return [one for name in names for one in yaml.safe_load_all((KUBERNETES / name).read_text())]


def by_kind(kind: str) -> dict[str, dict[str, Any]]:
    return {one["metadata"]["name"]: one for one in documents(*APPLIED) if one["kind"] == kind}


def pods() -> dict[str, dict[str, Any]]:
    """Templates of the pods by the name of what makes them."""
    made = {name: one["spec"]["template"] for name, one in by_kind("Deployment").items()}
    return made | {name: one["spec"]["jobTemplate"]["spec"]["template"] for name, one in by_kind("CronJob").items()}


def test_schemas() -> None:
    """Every manifest is valid for Kubernetes 1.30, with no field that it does not know; the list of them is whole."""
    files = [KUBERNETES / name for name in (*APPLIED, "secret.example.yaml")]
    command = [sys.executable, "-W", "ignore", "-m", "kubernetes_validate", "--strict", "--kubernetes-version", "1.30"]
    checked = subprocess.run([*command, *files], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    others = {"kustomization.yaml", "secret.example.yaml", "adapter-values.yaml"}
    assert {path.name for path in KUBERNETES.iterdir()} == {*APPLIED, *others}


def test_compose() -> None:
    """The compose file is valid, and everything but the helpers starts without a profile."""
    command = [BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", ROOT / "deploy/compose.yaml"]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout
    services = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())["services"]
    profiles = {name: one.get("profiles") for name, one in services.items() if "profiles" in one}
    assert profiles == {
        "publish": ["publish"],
        "triton": ["triton"],
        "levi-triton": ["triton"],
        "retrain": ["retrain"],
    }


@pytest.mark.parametrize("name", pods())
def test_pods_are_confined(name: str) -> None:
    """Not root, nothing writable but mounted folders, no privileges, no token of the cluster, limited memory."""
    spec = pods()[name]["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] == NOBODY
    assert f"--uid {NOBODY} " in (ROOT / "Dockerfile").read_text()
    for container in spec["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["limits"]["memory"]
        mounted = {one["name"] for one in container["volumeMounts"]}
        assert mounted == {one["name"] for one in spec["volumes"]}


def test_everything_points_at_something() -> None:
    """Selectors find the pods' labels, claims are there, ports have names, the autoscaler's metric is exported."""
    labels = {name: pod["metadata"]["labels"] for name, pod in pods().items()}
    server = labels["levi"]
    for kind in ("Service", "PodDisruptionBudget", "Deployment"):
        selector = by_kind(kind)["levi"]["spec"]["selector"]
        assert selector.get("matchLabels", selector) == server
    selected = {one["spec"]["podSelector"]["matchLabels"]["app.kubernetes.io/component"] for one in policies()}
    assert selected == {one["app.kubernetes.io/component"] for one in labels.values()}
    claims = set(by_kind("PersistentVolumeClaim"))
    for pod in pods().values():
        used = {v["persistentVolumeClaim"]["claimName"] for v in pod["spec"]["volumes"] if "persistentVolumeClaim" in v}
        assert used <= claims
    scaler = by_kind("HorizontalPodAutoscaler")["levi"]["spec"]
    assert (scaler["scaleTargetRef"]["kind"], scaler["scaleTargetRef"]["name"]) == ("Deployment", "levi")
    metric = scaler["metrics"][0]["pods"]["metric"]["name"]
    (rule,) = yaml.safe_load((KUBERNETES / "adapter-values.yaml").read_text())["rules"]["custom"]
    assert rule["name"]["as"] == metric
    assert "replicas" not in by_kind("Deployment")["levi"]["spec"]


def policies() -> list[dict[str, Any]]:
    return list(by_kind("NetworkPolicy").values())


def test_probes_and_metric_exist(app: RunningApp) -> None:
    """What the cluster asks for is what the server has, without a token."""
    (container,) = pods()["levi"]["spec"]["containers"]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert app.get(container[probe]["httpGet"]["path"]).status_code == 200
    metric = by_kind("HorizontalPodAutoscaler")["levi"]["spec"]["metrics"][0]["pods"]["metric"]["name"]
    assert re.search(rf"^{metric}{{", app.get("/metrics").text, re.MULTILINE)


def test_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    """Flags of the manifests and of the timer are flags of the programs; a pod has time to drain."""
    (container,) = pods()["levi"]["spec"]["containers"]
    settings = Serve(_cli_parse_args=container["args"], _env_file=None)
    assert pods()["levi"]["spec"]["terminationGracePeriodSeconds"] > settings.drain_s + settings.shutdown_s
    (job,) = pods()["levi-retrain"]["spec"]["containers"]
    unit = (ROOT / "deploy/systemd/levi-retrain.service").read_text()
    (line,) = re.findall(r"^ExecStart=\S+/levi-train (.+)$", unit, re.MULTILINE)
    for arguments in (job["args"], line.split()):
        assert fitting.main(arguments) == 2  # there is no such folder here, but every flag was understood
        assert "is no folder" in capsys.readouterr().err


def test_systemd(tmp_path: Path) -> None:
    """systemd finds nothing wrong with the units."""
    analyze = program("systemd-analyze")
    for path in (ROOT / "deploy/systemd").iterdir():
        text = path.read_text().replace("/opt/levi/bin/levi-train", "/bin/true").replace("User=levi", "User=root")
        (tmp_path / path.name).write_text(text)
    command = [analyze, "verify", "--recursive-errors=no", str(tmp_path / "levi-retrain.timer")]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.parametrize("file", ["Dockerfile", *(f"deploy/images/{name}.Dockerfile" for name in ("gpu", "train"))])
def test_container_files(file: str) -> None:
    """No finding of hadolint: unpinned base, root user, wrong shell use and the like."""
    checked = subprocess.run([BIN / "hadolint", ROOT / file], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that others may enter, with a repository that nobody but root may change."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        Toy("entity").write(folder / "models")
        yield folder


SOMEBODY = [
    *("setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups", "--no-new-privs"),
    # Wherever Python lies, it may be read, and nothing may be written: as in a container with a read-only root.
    *(f"--{kind}=-all,+dac_read_search" for kind in ("inh-caps", "ambient-caps", "bounding-set")),
]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize("workers", [1, 2])
def test_it_needs_no_writable_folder(shared: Path, workers: int) -> None:
    """As a user without a home, in a folder where it may not write, with a small /tmp if there are several workers: the
    server becomes ready, predicts, takes feedback where it may, and ends with 0.
    """
    feedback, scratch = shared / "feedback", shared / "tmp"
    for folder in (feedback, scratch):
        folder.mkdir()
        os.chown(folder, NOBODY, NOBODY)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [program("setpriv"), *SOMEBODY[1:], sys.executable, "-m", "levi_serve.cli", "--port", str(port)]
    command += [
        "--model-repo",
        str(shared / "models"),
        "--workers",
        str(workers),
        "--feedback",
        str(feedback),
        "--drain-s",
        "0",
    ]
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": "/nonexistent",
        "TMPDIR": str(scratch if workers > 1 else shared),
    }
    with (shared / "log").open("w") as log:
        server = subprocess.Popen(command, cwd=shared, env=environment, stdout=log, stderr=log)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}") as http:

            def ready() -> bool:
                assert server.poll() is None, (shared / "log").read_text()
                try:
                    return http.get("/readyz").status_code == 200
                except httpx.TransportError:
                    return False

            until(ready, (shared / "log").read_text)
            assert http.get("/predict?user=138&movie=357").status_code == 200
            assert http.post("/feedback", json={"user": 138, "movie": 357, "rating": 4}).status_code == 200
        server.terminate()
        assert server.wait(timeout=20) == 0
    finally:
        server.kill()
    owned = {path.name for path in shared.iterdir() if path.stat().st_uid == NOBODY}
    assert owned == {"feedback", "tmp"}
