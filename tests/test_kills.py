"""Whatever process dies, the study goes on, or ends at once with one line and nothing left behind."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from conftest import start
from test_run import agree, cmdline, family, gone, values, wait_for


def named(process: subprocess.Popen, name: str) -> list[psutil.Process]:
    return [child for child in family(process) if name in " ".join(cmdline(child)[:1])]


def wait_for_one(process: subprocess.Popen, name: str) -> None:
    wait_for(lambda: named(process, name), process, seconds=240)


def test_the_death_of_ray_is_one_line_and_leaves_nothing(cache: str, tmp_path: Path) -> None:
    part = "gcs_server"  # or the raylet, with whose death Ray adds lines of its own
    process = start(
        tmp_path, "experiment=gap", "study.equal_loss=null", "num_workers=2", "epochs=2000", cache
    )
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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupt_while_ray_starts(number: int, cache: str, tmp_path: Path) -> None:
    """It comes as Ray makes its core in the driver, for which it starts its first worker beforehand."""
    process = start(tmp_path, "experiment=gap", "study.equal_loss=null", "epochs=2000", cache)
    end = time.monotonic() + 240
    while not any("default_worker.py" in " ".join(cmdline(p)[1:3]) for p in family(process)):
        assert process.poll() is None and time.monotonic() < end
    members = family(process)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, out + err
    assert err.count("lbdist: interrupted") == 1 and "Traceback" not in err
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


def test_two_studies_at_once_do_not_share_a_life(
    remedies: tuple[Path, str], cache: str, tmp_path: Path
) -> None:
    """In one storage, where they train the same cells: one is killed, the other ends as if alone."""
    other = start(tmp_path, "experiment=batch_size", "study.batches=[16,40]", cache)
    process = start(tmp_path, "experiment=gap", "study.equal_loss=null", cache)
    wait_for_one(other, "ray::ImplicitFunc")
    other.kill()
    out, err = process.communicate(timeout=500)
    assert process.returncode == 0 and "Traceback" not in out + err, out + err
    alone, found = values(remedies[0] / "remedies"), values(tmp_path / "gap")
    agree(found, alone, least=len(found))
