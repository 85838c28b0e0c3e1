"""The real command, begun, watched and ended, and what it gives."""

import contextlib
import io
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import psutil

from lbdist import results
from lbdist.run import main

UNMEASURED = [
    "epochs=4",
    "seeds=1",
    "test_points=4",
    "data.train_samples=400",
    "data.test_samples=200",
    "network.widths=[16,16]",
    "max_concurrent=1",
]
"""The default study, shrunk, but for what it measures."""

SMALL = [*UNMEASURED, "measure.sharpness.draws=1", "measure.sharpness.subspace_dimension=5"]
"""The default study, shrunk."""


KEY = ["method", "remedy", "seed", "num_workers", "role", "setting", "metric", "split", "epoch", "step"]
KEY += ["epsilon", "space", "solver", "draw"]

STARTED: list[subprocess.Popen] = []


def start(storage: Path, *arguments: str, shrunk: Sequence[str] = SMALL) -> subprocess.Popen:
    """The command on a shrunk study, begun."""
    command = [sys.executable, "-m", "lbdist.run", *shrunk, f"storage={storage}", *arguments]
    pipe = subprocess.PIPE
    STARTED.append(subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=storage))
    return STARTED[-1]


def here(storage: Path, *arguments: str, shrunk: Sequence[str] = SMALL, status: int = 0) -> str:
    """What the command prints on a shrunk study, in this process."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        ended = main([*shrunk, f"storage={storage}", *arguments])
    assert ended == status, printed.getvalue()
    return printed.getvalue()


def serially(storage: Path, *arguments: str, shrunk: Sequence[str] = SMALL, status: int = 0) -> str:
    """What the command prints on a shrunk study, run in this process without Ray."""
    return here(storage, "executor=serial", *arguments, shrunk=shrunk, status=status)


def finish(process: subprocess.Popen) -> str:
    """What the command printed; it must have ended well."""
    out, err = process.communicate(timeout=500)
    assert process.returncode == 0, out + err
    return out


def table(out: str) -> str:
    """What the command prints about its results."""
    return out[out.index("Mean ±") : out.index("report:")]


def values(folder: Path | str) -> pd.Series:
    """Every number of a study that does not depend on the clock."""
    rows = results.load(folder).query("metric not in ('seconds', 'overhead_seconds')")
    return rows.set_index(KEY)["value"].sort_index()


def agree(found: pd.Series, alone: pd.Series, least: int) -> None:
    """At least so many numbers are in both studies, and equal; those that are not are shown."""
    shared = found.index.intersection(alone.index)
    both = pd.DataFrame({"found": found[shared], "alone": alone[shared]})
    differ = both[~np.isclose(both["found"], both["alone"], rtol=0, atol=1e-6, equal_nan=True)]
    assert len(shared) >= least and differ.empty, f"{len(shared)} shared\n{differ.reset_index().to_string()}"


def wait_for(condition, process: subprocess.Popen, seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.05)


def family(process: subprocess.Popen) -> list[psutil.Process]:
    """The processes below a command."""
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.Error:
        return []


def cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def gone(members: list[psutil.Process], seconds: float = 90) -> None:
    """Waits for the end of processes: Ray's agents look for their parent every few seconds."""
    _, alive = psutil.wait_procs(members, timeout=seconds)
    assert not alive, [p.cmdline() for p in alive]


def named(process: subprocess.Popen, name: str) -> list[psutil.Process]:
    return [child for child in family(process) if name in " ".join(cmdline(child)[:1])]


def wait_for_one(process: subprocess.Popen, name: str) -> None:
    wait_for(lambda: named(process, name), process, seconds=240)


def own_mounts() -> bool:
    """Whether this machine lets a process have mounts of its own."""
    try:
        return subprocess.run(["unshare", "-Urm", "true"], capture_output=True, timeout=20).returncode == 0
    except OSError:
        return False
