"""The on-premise file, for real: `ray up` over SSH to two machines, a study on both, `ray down`."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.support import machines
from tests.support.commands import UNMEASURED, agree, values
from tests.support.repository import ROOT

STUDY = [
    "experiment=gap",
    "study.equal_loss=null",
    "study.check_workers=2",
    "measure=[]",
    "precision=float32",
    *UNMEASURED,
]


QUICK = {"AUTOSCALER_UPDATE_INTERVAL_S": "1", "AUTOSCALER_NODE_SSH_INTERVAL_S": "1"}
"""How often Ray's autoscaler looks, on machines that need not boot."""


class Cluster:
    """A cluster file for machines at hand, and Ray's commands on it."""

    def __init__(self, folder: Path, addresses: list[str]) -> None:
        self.folder, self.addresses = folder, addresses
        self.file = folder / "cluster.yaml"
        config = yaml.safe_load((ROOT / "cluster" / "on_premise.yaml").read_text())
        config["provider"] |= {"head_ip": addresses[0], "worker_ips": addresses[1:]}
        config["auth"] = {"ssh_user": "root", "ssh_private_key": str(folder / "key")}
        # the machines share this environment, where all is installed
        kept = [line for line in config["setup_commands"] if "pip install" not in line]
        assert len(kept) == len(config["setup_commands"]) - 2
        config["setup_commands"] = kept
        # a worker misses its head after a minute, by itself
        start = config["worker_start_ray_commands"]
        start[-1] = f"export RAY_gcs_rpc_server_reconnect_timeout_s=5; {start[-1]}"
        head = config["head_start_ray_commands"]
        head[-1] = f"export {' '.join(f'{name}={value}' for name, value in QUICK.items())}; {head[-1]}"
        for lines in (head, start):
            lines[-1] = lines[-1].replace("ray start", "ray start --num-cpus=1")
        self.file.write_text(yaml.safe_dump(config))
        (folder / "home" / ".ssh").mkdir(parents=True)
        gone = ("RAY_AUTH_MODE", "RAY_ADDRESS", "RAY_worker_niceness")
        self.environment = {key: value for key, value in os.environ.items() if key not in gone}
        path = f"{folder / 'bin'}:{self.environment['PATH']}"
        self.environment |= {"HOME": str(folder / "home"), "RAY_TMPDIR": str(folder), "PATH": path}
        self.environment |= QUICK
        self.environment |= {"RAY_UP_enable_autoscaler_v2": "0", "RAY_USAGE_STATS_ENABLED": "0"}

    def ray(self, *words: str, seconds: float = 400) -> str:
        done = subprocess.run(
            ["ray", *words], cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=seconds
        )
        assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    def on(self, place: int, command: str) -> str:
        return machines.ssh(self.folder, self.addresses[place], command).stdout


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("machines")
    try:
        with machines.machines(folder, 2) as addresses:
            found = Cluster(folder, addresses)
            found.ray("get-auth-token", "--generate")
            found.ray("up", "-y", "--no-config-cache", str(found.file))
            end = time.monotonic() + 240
            while "2 local.cluster.node" not in found.on(0, "ray status"):
                assert time.monotonic() < end, found.on(0, "ray status")
                time.sleep(1)
            yield found
    except machines.Missing as why:
        pytest.skip(f"no machines for ray up: {why}")


@pytest.mark.timeout(900)
def test_a_study_on_two_machines(cluster: Cluster, alone: tuple[Path, str], tmp_path: Path) -> None:
    """A group of two takes both machines, of one CPU each; what comes back is what one process gives."""
    study = [*STUDY, f"storage={cluster.folder}/shared"]
    command = f"cd lbdist && python -m lbdist.run {shlex.join(study)}"
    out = cluster.ray("exec", str(cluster.file), command)
    assert re.search(r"joined the cluster at [\d.]+:6379: 2 nodes with 2 CPUs", out), out
    assert "LB, seed 0, on 1 and 2 workers: test accuracy" in out and "Traceback" not in out
    for place in (0, 1):  # Ray's own logs on each machine
        assert "RayTrainWorker" in cluster.on(
            place,
            "grep -rl RayTrainWorker /tmp/ray/session_latest/logs"
            " | head -1; grep -rho RayTrainWorker /tmp/ray | head -1",
        )
    cluster.ray("rsync-down", str(cluster.file), f"{cluster.folder}/shared/", f"{tmp_path}/back/")
    agree(values(tmp_path / "back" / "gap"), values(alone[0] / "remedies"), least=50)


def test_what_the_machines_do_not_share_is_refused(cluster: Cluster) -> None:
    out = cluster.on(
        0,
        "cd lbdist; python -m lbdist.run storage=/tmp/ray/own 2>&1; echo status $?; ls /tmp/ray",
    )
    assert "status 2" in out and "own" not in out.split(), out
    assert (
        "storage=/tmp/ray/own: must be a folder that every node sees" in out and out.count("lbdist: ") == 1
    ), out


def test_a_job_goes_through_the_dashboard(cluster: Cluster) -> None:
    """`ray job submit` from outside, with the token, through a tunnel to the head's loopback."""
    options = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]
    port = 20_000 + os.getpid() % 10_000
    tunnel = subprocess.Popen(
        ["ssh", *options, "-i", str(cluster.folder / "key"), "-N", "-L", f"{port}:127.0.0.1:8265",
         f"root@{cluster.addresses[0]}"], stderr=subprocess.DEVNULL)  # fmt: skip
    try:
        time.sleep(2)
        storage = f"storage={cluster.folder}/shared"
        study = ["python", "-m", "lbdist.run", *STUDY, storage]
        cluster.environment["RAY_AUTH_MODE"] = "token"
        out = cluster.ray("job", "submit", "--address", f"http://127.0.0.1:{port}", "--", *study)
        assert "succeeded" in out and "SB" in out and "joined" not in out  # all was there already
    finally:
        tunnel.kill()
        tunnel.wait(10)


def test_ray_down_leaves_nothing(cluster: Cluster) -> None:
    """The last test: the workers end once they miss their head; Ray's agents after them, within a minute."""
    cluster.ray("down", "-y", str(cluster.file))
    end = time.monotonic() + 120
    left = "ps -eo args | grep -E 'raylet|gcs_server|ray::|dashboard' | grep -Ev 'grep|ray::.*Agent'"
    while any(cluster.on(place, left) for place in (0, 1)):
        assert time.monotonic() < end, [cluster.on(place, left) for place in (0, 1)]
        time.sleep(3)
