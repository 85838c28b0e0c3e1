"""Shared by all tests: one thread a process, Ray told to be quiet, small cells and data."""

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
# the tests that run beside a study would starve its workers, which are nice by Ray's default
os.environ.setdefault("RAY_worker_niceness", "0")

import numpy as np
import pytest
import torch

from lbdist.data.base import Dataset, Split

torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What runs whole studies starts first, since each file stays on one process to its end."""
    # `ray up` first beside them: it waits more than it works
    long = (
        "test_run",
        "test_cluster_up",
        "test_kills",
        "test_cluster_nodes",
        "test_damage",
        "test_storage",
        "test_cluster_files",
        "test_additions",
    )
    items.sort(key=lambda item: long.index(item.path.stem) if item.path.stem in long else len(long))


UNMEASURED = [
    "epochs=4",
    "seeds=1",
    "evaluations=4",
    "data.train_samples=400",
    "data.test_samples=200",
    "network.widths=[16,16]",
    "max_concurrent=1",
]
"""The default study, shrunk, but for what it measures."""

SMALL = [*UNMEASURED, "measure.sharpness.draws=1", "measure.sharpness.subspace_dimension=5"]
"""The default study, shrunk."""


@pytest.fixture(scope="session")
def mnist1d_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder of the session's own."""
    return tmp_path_factory.mktemp("cache")


def signals(train: int = 130, test: int = 40, length: int = 12, classes: int = 4, seed: int = 0) -> Dataset:
    """Random signals whose class can be learnt."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(classes, length))

    def split(count: int) -> Split:
        labels = random.integers(0, classes, count)
        return Split((centres[labels] + 0.7 * random.normal(size=(count, length))).astype("f4"), labels)

    return Dataset(split(train), split(test), classes)


def images(train: int = 70, test: int = 20, seed: int = 0) -> Dataset:
    """Random uint8 images, 3 x 8 x 8, in 4 classes."""
    random = np.random.default_rng(seed)

    def split(count: int) -> Split:
        labels = random.integers(0, 4, count)
        noise = random.integers(0, 128, (count, 3, 8, 8))
        return Split((noise + 30 * labels[:, None, None, None]).astype("u1"), labels)

    return Dataset(split(train), split(test), 4)


STARTED: list[subprocess.Popen] = []


@pytest.fixture(autouse=True)
def nothing_runs_on() -> Iterator[None]:
    """A test that fails leaves no study behind."""
    yield
    for process in STARTED:
        if process.poll() is None:
            process.kill()
    STARTED.clear()


def start(storage: Path, *arguments: str, shrunk: Sequence[str] = SMALL) -> subprocess.Popen:
    """The command on a shrunk study, begun."""
    command = [sys.executable, "-m", "lbdist.run", *shrunk, f"storage={storage}", *arguments]
    pipe = subprocess.PIPE
    STARTED.append(subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=storage))
    return STARTED[-1]


def finish(process: subprocess.Popen) -> str:
    """What the command printed; it must have ended well."""
    out, err = process.communicate(timeout=500)
    assert process.returncode == 0, out + err
    return out


@pytest.fixture(scope="session")
def cache(mnist1d_cache: Path) -> str:
    """The data's place, as an override."""
    return f"data.root={mnist1d_cache}"


@pytest.fixture(scope="session")
def remedies(tmp_path_factory: pytest.TempPathFactory, cache: str) -> tuple[Path, str]:
    """The default study, undisturbed, two cells at once: a copy of its storage, and what it printed."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent  # of all processes of this run
    storage, printed = shared / "undisturbed", shared / "undisturbed.txt"
    with (shared / "undisturbed.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not printed.exists():
            storage.mkdir()
            fields = ["experiment=remedies", "max_concurrent=null", cache]
            printed.write_text(finish(start(storage, *fields)))
    own = tmp_path_factory.mktemp("remedies") / "results"
    shutil.copytree(storage, own)
    return own, printed.read_text()
