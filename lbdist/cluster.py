"""Joins the user's Ray cluster or starts a local one, and says what it has."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lbdist import processes
from lbdist.errors import require

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES": str(2 << 30),
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
"""Set before Ray is imported; a user's own setting wins."""

for _name, _value in ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)

import ray  # noqa: E402


@dataclass(frozen=True)
class Capacity:
    """What the cluster has: CPUs, GPUs."""

    cpus: int
    gpus: int

    @classmethod
    def of_cluster(cls) -> Capacity:
        """The connected cluster's resources."""
        have = ray.cluster_resources()
        return cls(int(have.get("CPU", 0)), int(have.get("GPU", 0)))

    @property
    def slots(self) -> int:
        """Training processes that run at once: a GPU each where there are GPUs, else a CPU each."""
        return self.gpus or self.cpus


ANSWER_SECONDS = 5.0
"""How long a cluster may take to answer."""


def address() -> str:
    """The address of the cluster that `connect` will join; empty where it will start a local one.

    Raises:
        InputError: No cluster answers at RAY_ADDRESS, or a local one could not be started in RAY_TMPDIR.
    """
    asked = os.environ.get("RAY_ADDRESS", "")
    folder = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())
    file = folder / "ray" / "ray_current_cluster"
    started = file.read_text().strip() if file.is_file() else ""  # by `ray start`
    allowed = "HOST:PORT of a running Ray cluster, or auto; unset it to start a local one"
    if asked in ("", "auto"):
        if started and _answers(started):
            return started
        require(asked == "", "RAY_ADDRESS", asked, f"{allowed} (none is running here)")
        _check_folder(folder)
        return ""
    if asked.startswith("ray://"):
        allowed += " (this is a client's address: use `ray job submit`, or run on the cluster)"
    host, _, port = asked.rpartition(":")
    require(bool(host) and port.isdigit() and "/" not in host, "RAY_ADDRESS", asked, allowed)
    require(_answers(asked), "RAY_ADDRESS", asked, f"{allowed} (nothing answers there)")
    return asked


def _answers(address: str) -> bool:
    """Whether a Ray head answers there; Ray's own clients wait for much longer."""
    import grpc  # slow to import, and of no use where there is no cluster

    with grpc.insecure_channel(address) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=ANSWER_SECONDS)
            channel.unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive")(b"", timeout=ANSWER_SECONDS)
        except grpc.FutureTimeoutError:
            return False
        except grpc.RpcError as error:  # a head that wants a token is one
            return error.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
    return True


def _check_folder(folder: Path) -> None:
    """Refuses a folder in which a local Ray could not keep its sockets."""
    longest = 107 - len("/ray/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store")
    good = folder.is_dir() and os.access(folder, os.W_OK | os.X_OK) and len(str(folder)) <= longest
    require(good, "RAY_TMPDIR", folder, f"a folder to write in, of a path of at most {longest} letters")


@contextlib.contextmanager
def connect(say: Callable[[str], None], command: str) -> Iterator[Capacity]:
    """Ray, while the context lasts: the cluster at `address`, or a local one that ends with it.

    Args:
        say: Called with one line on what was joined or started.
        command: What the user gave, to go on with when Ray dies.
    """
    joined, began = address(), time.monotonic()
    terminate = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=joined or "local", log_to_driver=False, logging_level=logging.CRITICAL)
    except SystemExit:  # from the handler of SIGTERM that Ray sets meanwhile
        signal.signal(signal.SIGTERM, terminate)
        signal.raise_signal(signal.SIGTERM)
        raise
    capacity = Capacity.of_cluster()
    how = f"joined the cluster at {joined}" if joined else "started a local Ray"
    signal.signal(signal.SIGTERM, terminate)  # Ray has set its own
    took = time.monotonic() - began
    say(f"{how} with {capacity.cpus} CPUs and {capacity.gpus} GPUs ({took:.1f} s)")
    go_on = processes.go_on(command)
    try:
        with contextlib.nullcontext() if joined else processes.guarded(go_on):
            yield capacity
    finally:
        with processes.closing(f"interrupted; {go_on}"):
            ray.shutdown()
