"""Studies of data as people have them, by the command they would give."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import safetensors.numpy

import lbdist.results
from lbdist.run import main
from tests.support.files import encode
from tests.support.layouts import npz

QUICK = ["executor=serial", "seeds=1", "epochs=2", "small_batch=8", "large_batch=24", "measure=[distance]"]
MODEL = """
from torch import nn


class Bag(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Embedding(50, 4), nn.Flatten(), nn.Linear(48, 2))


class Small(nn.Sequential):
    def __init__(self):
        pooled = nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        super().__init__(nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), *pooled, nn.Linear(4, 2))


class Price(nn.Sequential):
    '''A number a sample, of shape (N,).'''

    def __init__(self):
        super().__init__(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1), nn.Flatten(0))
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    for at in range(60):
        file = tmp_path / "photos" / ("train", "test")[at >= 48] / ("cat", "dog")[at % 2] / f"{at}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        size = (*random.integers(20, 60, 2), 3)
        file.write_bytes(encode(random.integers(0, 256, size, np.uint8), "JPEG"))
    rows = [
        (1 + at % 5, 80.5 + at % 37, ("Ulm", "Bonn")[at % 2], 90000 + 1000 * (at % 37)) for at in range(80)
    ]
    lines = ["rooms,area,town,price", *(",".join(map(str, row)) for row in rows)]
    (tmp_path / "houses.csv").write_text("\n".join(lines))
    tokens = {
        split: (random.integers(0, 50, (n, 12)), np.arange(n) % 2)
        for split, n in (("train", 60), ("test", 20))
    }
    npz(tmp_path, tokens, "reviews")
    (tmp_path / "my_model.py").write_text(MODEL)
    return tmp_path


DATA = {
    "pictures of several sizes": "data=folder data.root=photos data.resize=32 data.mean=train "
    "data.std=[0.2,0.2,0.3] network._target_=my_model.Small",
    "a table": "data=table data.root=houses.csv data.label=price data.task=regression data.categories=[town] "
    "data.standardise=all data.held_out=0.2 loss=mean_squared_error network._target_=my_model.Price",
    "sequences of integers": "data=arrays data.root=reviews.npz network._target_=my_model.Bag",
}


@pytest.mark.parametrize("kind", DATA)
def test_a_study_of_what_people_bring(
    kind: str, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the data to a report, which says what was done to them."""
    monkeypatch.syspath_prepend(str(home))
    assert main(["experiment=gap", *DATA[kind].split(), *QUICK]) == 0, capsys.readouterr().err
    rows = lbdist.results.load(home / "results/gap")
    ends = rows[(rows.metric == "loss") & (rows.split == "test")]
    assert set(ends.method) >= {"SB", "LB"} and np.isfinite(ends.value).all()
    page = (home / "results/gap/report.html").read_text()
    if kind == "pictures of several sizes":
        assert "inputs are scaled to [0, 1], then less" in page and "the classes in order: cat is 0" in page


def test_the_same_samples_in_another_layout_are_the_same_cells(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(home))
    assert main(["experiment=gap", *DATA["sequences of integers"].split(), *QUICK]) == 0
    cells = {file: file.stat().st_mtime_ns for file in (home / "results/cells").rglob("*") if file.is_file()}
    (home / "again").mkdir()
    with np.load(home / "reviews.npz") as archive:
        own = {key: values.astype("i2") for key, values in archive.items()}
    safetensors.numpy.save_file(own, home / "again/all.safetensors")
    other = DATA["sequences of integers"].replace("reviews.npz", "again")
    assert main(["experiment=gap", *other.split(), *QUICK]) == 0
    assert {
        file: file.stat().st_mtime_ns for file in (home / "results/cells").rglob("*") if file.is_file()
    } == cells


def test_the_command_finds_modules_of_the_current_folder(home: Path) -> None:
    command = [
        str(Path(sys.executable).parent / "lbdist"),
        "experiment=gap",
        *DATA["sequences of integers"].split(),
    ]
    done = subprocess.run(
        [*command, *QUICK, "dry_run=true"], cwd=home, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0 and "study gap: Bag on arrays" in done.stdout, done.stderr


def test_columns_of_a_table_are_no_signal(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], unestimated: None
) -> None:
    monkeypatch.syspath_prepend(str(home))
    words = [
        "experiment=remedies",
        "remedy=[none,augmentation]",
        *DATA["a table"].split(),
        *QUICK,
        "dry_run=true",
    ]
    assert main(words) == 0
    assert (
        "remedy augmentation is left out: it shifts signals, and the columns of a table"
        in capsys.readouterr().out
    )


READ = """
import sys
from lbdist.data.folder import Folder
from lbdist.processes import Interrupts
with Interrupts("over"):
    Folder(root=sys.argv[1], held_out=0.1, memory_gib=0).load()
"""
CORES = len(os.sched_getaffinity(0))
several = pytest.mark.skipif(CORES == 1, reason="one core decodes in the driver itself")


def _photos(folder: Path, picture: np.ndarray, count: int) -> None:
    """One picture many times, in two classes."""
    encoded = encode(picture)
    for at in range(count):
        file = folder / "ab"[at % 2] / f"{at}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encoded)


@several
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_processes_that_decode_end_with_the_driver(
    how: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    _photos(tmp_path / "photos", np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8), 4000)
    with subprocess.Popen(
        [sys.executable, "-c", READ, str(tmp_path / "photos")], stderr=subprocess.PIPE
    ) as driver:
        children: list[psutil.Process] = []
        begin = time.monotonic()
        # one child alone may be what `import torch` asks
        while len(children) < CORES and driver.poll() is None and time.monotonic() < begin + 60:
            time.sleep(0.05)
            children = psutil.Process(driver.pid).children()
        assert len(children) == CORES
        driver.send_signal(how)
        _, alive = psutil.wait_procs(children, timeout=20)
        assert not alive
        assert driver.wait(20) != 0
    assert not list((tmp_path / "cache").rglob("[!.]*.npy"))
    shutil.rmtree(tmp_path / "photos")


@several
def test_an_interrupt_amid_their_forks_is_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There Python loses it, or waits at its end for processes that nobody ends."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    _photos(tmp_path / "photos", np.zeros((8, 8), np.uint8), 1200)
    amid = "import os\nos.register_at_fork(after_in_parent=lambda: os.kill(os.getpid(), 2))"
    words = [sys.executable, "-c", amid + READ, str(tmp_path / "photos")]
    driver = subprocess.run(words, timeout=60, capture_output=True, text=True)
    assert driver.returncode == -signal.SIGINT
    assert "ignored" not in driver.stderr and driver.stderr.rstrip().endswith("KeyboardInterrupt")
