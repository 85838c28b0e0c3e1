"""Joins the user's Ray cluster or starts a local one, and says what it has."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lbdist.errors import InputError

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


def address() -> str:
    """The address of the cluster that `ray.init` will join; empty where it will start a local one.

    Raises:
        InputError: Nothing answers at RAY_ADDRESS.
    """
    address = os.environ.get("RAY_ADDRESS", "")
    host, _, port = address.rpartition(":")
    if address and port.isdigit() and "://" not in address:
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except OSError as error:
            raise InputError(
                f"RAY_ADDRESS={address}: must be a running Ray cluster ({error.strerror or error}); "
                "unset it to start a local one"
            ) from error
    current = Path(os.environ.get("RAY_TMPDIR", tempfile.gettempdir())) / "ray" / "ray_current_cluster"
    return address or (current.read_text().strip() if current.exists() else "")


@contextlib.contextmanager
def connect(say: Callable[[str], None]) -> Iterator[Capacity]:
    """Ray, while the context lasts: the cluster at `address`, or a local one that ends with it.

    Args:
        say: Called with one line on what was joined or started.
    """
    joined, began = address(), time.monotonic()
    terminate = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(log_to_driver=False, logging_level=logging.CRITICAL)
    except SystemExit:  # from the handler of SIGTERM that Ray sets meanwhile
        signal.signal(signal.SIGTERM, terminate)
        signal.raise_signal(signal.SIGTERM)
        raise
    capacity = Capacity.of_cluster()
    how = f"joined the cluster at {joined}" if joined else "started a local Ray"
    signal.signal(signal.SIGTERM, terminate)  # Ray has set its own
    took = time.monotonic() - began
    say(f"{how} with {capacity.cpus} CPUs and {capacity.gpus} GPUs ({took:.1f} s)")
    try:
        yield capacity
    finally:
        # a second signal must not leave processes behind
        kinds = (signal.SIGINT, signal.SIGTERM)
        previous = [signal.signal(kind, signal.SIG_IGN) for kind in kinds]
        ray.shutdown()
        for kind, handler in zip(kinds, previous, strict=True):
            signal.signal(kind, handler)
