"""Whatever process dies, the study goes on, or ends at once with one line and nothing left behind."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.commands import (
    SMALL,
    cmdline,
    family,
    gone,
    own_mounts,
    start,
    wait_for_one,
)


def test_the_death_of_ray_is_one_line_and_leaves_nothing(cache: str, tmp_path: Path) -> None:
    part = "gcs_server"  # or the raylet, with whose death Ray adds lines of its own
    process = start(tmp_path, "experiment=gap", "study.equal_loss=null", "epochs=2000", cache)
    wait_for_one(process, "ray::ImplicitFunc")
    time.sleep(2)
    members = family(process)
    (vital,) = [p for p in members if p.name() == part]
    vital.kill()
    began = time.monotonic()
    _, err = process.communicate(timeout=30)
    assert process.returncode == 1 and time.monotonic() - began < 30
    (line,) = [line for line in err.splitlines() if line.startswith("lbdist: ")]
    assert line.startswith(f"lbdist: Ray's {part} died") and "To go on: python -m lbdist.run" in line
    assert "Traceback" not in err
    gone(members, seconds=20)


def test_an_interrupt_while_ray_starts(cache: str, tmp_path: Path) -> None:
    """It comes as Ray makes its core in the driver, for which it starts its first worker beforehand.

    By SIGTERM, for which Ray sets a handler of its own meanwhile.
    """
    process = start(tmp_path, "experiment=gap", "study.equal_loss=null", "epochs=2000", cache)
    end = time.monotonic() + 240
    while not any("default_worker.py" in " ".join(cmdline(p)[1:3]) for p in family(process)):
        assert process.poll() is None and time.monotonic() < end
    members = family(process)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, out + err
    assert err.count("lbdist: interrupted") == 1 and "Traceback" not in err
    gone(members, seconds=20)


def test_an_interrupt_that_every_process_gets_is_told_as_one(cache: str, tmp_path: Path) -> None:
    """As systemd, Slurm and `timeout` send it: parts of Ray are dead before this one is heard."""
    process = start(tmp_path, "experiment=gap", "study.equal_loss=null", "epochs=2000", cache)
    wait_for_one(process, "ray::ImplicitFunc")
    members = family(process)
    os.kill(process.pid, signal.SIGSTOP)  # so that it is at once to this one, however slowly it is sent
    for pid in [*(member.pid for member in members), process.pid]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    os.kill(process.pid, signal.SIGCONT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, err
    assert err.count("lbdist: ") == 1 and "Traceback" not in out + err
    assert re.search(r"lbdist: interrupted; .*To go on: python -m lbdist.run .*experiment=gap", err)
    gone(members, seconds=20)


def test_a_second_interrupt_ends_it_at_once(cache: str, tmp_path: Path) -> None:
    process = start(tmp_path, "experiment=gap", "study.equal_loss=null", "epochs=2000", cache)
    wait_for_one(process, "ray::ImplicitFunc")
    members = family(process)
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and time.monotonic() - began < 5
    assert err.count("lbdist: interrupted") == 1 and "Traceback" not in err
    gone(members, seconds=20)


@pytest.mark.skipif(not own_mounts(), reason="this machine gives no mount of one's own")
def test_a_full_disk_is_one_line_and_the_next_run_goes_on(cache: str, tmp_path: Path) -> None:
    """A file system of 150 kB, then of 50 MB, where the study ends as it should, here without Ray."""
    (tmp_path / "small").mkdir()
    words = [
        sys.executable,
        "-m",
        "lbdist.run",
        *[word for word in SMALL if "sharpness" not in word],
        "experiment=gap",
        "study.equal_loss=null",
        "network.widths=[64,64]",
        "measure=[distance]",
        cache,
    ]
    command = shlex.join([*words, f"storage={tmp_path}/small/results"])
    script = f"""
mount -t tmpfs -o size=150k tmpfs {tmp_path}/small || exit 99
{command} > {tmp_path}/first 2>&1; echo $? >> {tmp_path}/first
mount -o remount,size=50m {tmp_path}/small
{command} executor=serial > {tmp_path}/second 2>&1; echo $? >> {tmp_path}/second
"""
    subprocess.run(["unshare", "-Urm", "sh", "-c", script], check=True, timeout=500, cwd=tmp_path)
    first, second = ((tmp_path / name).read_text().splitlines() for name in ("first", "second"))
    assert first[-1] == "1" and second[-1] == "0", (first, second)
    said = [line for line in first if line.startswith("lbdist: ")]
    assert any("No space left on device" in line for line in said), first
    assert not [line for line in first + second if line.startswith("Traceback")]
    table = [line for line in second if line.startswith(("SB  ", "LB  "))]
    assert len(table) == 4 and not any("nan" in line for line in table)
