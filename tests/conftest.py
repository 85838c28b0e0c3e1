"""Shared by all tests: one thread per process, Ray told to be quiet, small cells and data."""

import math
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
# the tests that run beside a study would starve its workers, which are nice by Ray's default
os.environ.setdefault("RAY_worker_niceness", "0")

import numpy as np
import pytest
import torch
from xdist.scheduler import LoadScopeScheduling

from lbdist.data.base import locked
from lbdist.training import loop, rehearsal
from tests.support import seeds
from tests.support.commands import STARTED, finish, serially, start

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--seeds=1`: other draws than the usual ones."""
    parser.addoption("--seeds", type=int, default=0, help="shifts the seeds by which tests draw and train")


def pytest_configure(config: pytest.Config) -> None:
    """Before the tests are imported, some of which draw then."""
    if config.getoption("--seeds"):
        os.environ[seeds.VARIABLE] = str(config.getoption("--seeds"))
    seeds.shift()


@pytest.fixture
def every_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A resume file after every epoch, whatever it costs."""
    monkeypatch.setattr(loop, "SHARE", math.inf)


RAY = dict.fromkeys(("test_machines", "test_kills", "test_pool", "test_slurm"), "a cluster")
RAY |= dict.fromkeys(("test_up", "test_run"), "a local Ray")
"""Modules that start Ray, one after the other in each of two groups: they wait more than they work."""


class InGroups(LoadScopeScheduling):
    """Ray's tests in two groups that begin beside each other, and each other file where there is room.

    pytest-xdist's own `--dist=loadgroup` (3.8) has no effect with pytest 9.2.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return RAY.get(Path(file).stem, file)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> InGroups:
    """How tests go to processes."""
    return InGroups(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Ray's tests first."""
    order = list(RAY)
    items.sort(key=lambda item: order.index(item.path.stem) if item.path.stem in RAY else len(order))


@pytest.fixture(scope="session")
def together(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A folder of the session's own, the same for all its processes."""
    own = tmp_path_factory.getbasetemp()
    return own if worker_id == "master" else own.parent


@pytest.fixture(scope="session")
def mnist1d_cache(together: Path) -> Path:
    """Where data are cached; who comes first makes them, and the others wait."""
    return together / "cache"


@pytest.fixture(autouse=True)
def drawn_alike() -> None:
    """What a test draws without a seed of its own does not hang on the tests before it."""
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)


@pytest.fixture(autouse=True)
def nothing_runs_on() -> Iterator[None]:
    """A test that fails leaves no study behind."""
    yield
    for process in STARTED:
        if process.poll() is None:
            process.kill()
    STARTED.clear()


@pytest.fixture(scope="session")
def cache(mnist1d_cache: Path) -> str:
    """The data's place, as an override."""
    return f"data.root={mnist1d_cache / 'lbdist'}"


@pytest.fixture
def unestimated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dry runs that say that each cell takes a second, since to measure a step of each takes its time."""
    monkeypatch.setattr(rehearsal, "estimate", lambda cells, data, device: {cell.id: 1.0 for cell in cells})
    monkeypatch.setattr(rehearsal, "seconds_of_f", lambda cell, data, device: 1.0)


@pytest.fixture(scope="session")
def remedies(tmp_path_factory: pytest.TempPathFactory, cache: str) -> tuple[Path, str]:
    """The default study through Ray, undisturbed, two cells at once: its storage, and what it printed."""
    storage = tmp_path_factory.mktemp("undisturbed") / "results"
    storage.mkdir()
    return storage, finish(start(storage, "experiment=remedies", "max_concurrent=null", cache))


@pytest.fixture(scope="session")
def alone(together: Path, cache: str) -> tuple[Path, str]:
    """The same without Ray, run by the process that comes first."""
    storage, said = together / "alone", together / "alone.txt"
    with locked(together):
        if not said.exists():
            said.write_text(serially(storage, "experiment=remedies", cache))
    return storage, said.read_text()


@pytest.fixture
def copied(alone: tuple[Path, str], tmp_path: Path) -> Path:
    """A copy of the storage of the default study."""
    return Path(shutil.copytree(alone[0], tmp_path / "copied"))


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """A bucket of a real S3 server on loopback."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    keys = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "region_name": "us-east-1"}
    boto3.client("s3", endpoint_url=f"http://{host}:{port}", **keys).create_bucket(Bucket="results")
    yield (
        "s3://key:secret@results/{}?scheme=http&region=us-east-1&allow_bucket_creation=false"
        f"&endpoint_override={host}:{port}"
    )
    server.stop()
