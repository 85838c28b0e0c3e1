"""The machine as it may be: no home, keys in a URI, an interrupt at once, Ray that dies as it starts."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from lbdist import results
from lbdist.processes import KEYS, without_keys
from lbdist.storage import Store
from tests.support.commands import UNMEASURED

GAP = [*UNMEASURED, "experiment=gap", "study.equal_loss=null", "measure=[fit]", "epochs=1", "test_points=1"]


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "lbdist.run", *GAP, *words]


# Python's own start is not lbdist's: the delay counts from the moment before it begins to run lbdist
BEGIN = """\
import runpy, signal, lbdist
print("begun", flush=True)
runpy.run_module("lbdist.run", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("delay", [0.02, 0.1, 0.3, 0.6, 1.0])
def test_an_interrupt_in_the_first_second_is_a_line(delay: float, tmp_path: Path, cache: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", BEGIN, *GAP, cache, "dry_run=true"],
        cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    if process.returncode != 130:  # no line of lbdist's had run
        assert delay < 0.3 and "KeyboardInterrupt" in err and "lbdist/" not in err, err
        return
    assert "Traceback" not in err and err.strip().startswith("lbdist: interrupted")


KEY, SECRET = "AKIALBDISTTESTKEY", "sEcReT-Of-LbDiSt-7f3a9"


@pytest.mark.parametrize("name", ["gcs_server", "raylet"])
def test_ray_that_dies_as_it_starts_is_a_line(name: str, tmp_path: Path, cache: str) -> None:
    began = time.monotonic()
    process = subprocess.Popen(
        command(cache, f"storage={tmp_path}"), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    driver = psutil.Process(process.pid)
    while process.poll() is None:
        with contextlib.suppress(psutil.Error):
            found = [child for child in driver.children(recursive=True) if child.name() == name]
            if found:
                time.sleep(0.5)
                found[0].kill()
                break
        time.sleep(0.05)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1, err
    assert "Traceback" not in err and err.count("\n") == 1 and err.startswith("lbdist: Ray"), err
    assert "To go on:" in err and time.monotonic() < began + 60


def test_a_study_on_s3_leaves_its_keys_nowhere(s3: str, cache: str, tmp_path: Path) -> None:
    """Not in what it says, in the bucket, in Ray's session folder, or in the list of processes."""
    uri = s3.format("keys").replace("key:secret@", f"{KEY}:{SECRET}@")
    short = Path(tempfile.mkdtemp(prefix="lb"))
    home = tmp_path / "home"
    home.mkdir()
    hidden = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "RAY_A"))}
    data = f"data.root={Path(cache.partition('=')[2])}"
    process = subprocess.Popen(
        command(data, f"storage={uri}"), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**hidden, "RAY_TMPDIR": str(short), "HOME": str(home)}, cwd=tmp_path,
    )  # fmt: skip
    seen = []
    while process.poll() is None and not seen:
        time.sleep(2)
        with contextlib.suppress(psutil.Error):
            seen = psutil.Process(process.pid).cmdline()
    out, err = process.communicate(timeout=300)
    try:
        assert process.returncode == 0, err
        assert seen and SECRET not in " ".join(seen)
        secrets = [word.encode() for word in (KEY, SECRET)]
        assert not any(word.decode() in out + err for word in secrets)
        files = [path for path in short.rglob("*") if path.is_file()]
        assert len(files) > 20  # Ray's logs
        for path in [*files, *(p for p in home.rglob("*") if p.is_file())]:
            content = path.read_bytes()
            assert not any(word in content for word in secrets), path
        assert not list(home.rglob("auth_token"))  # the token is the process's own
        store = Store(s3.format("keys"))
        names = store.names()
        assert "gap/report.html" in names and any(name.startswith("gap/tune/") for name in names)
        for name in names:
            content = store.read(name)
            assert not any(word in content for word in secrets), name
        assert len(results.load(store / "gap"))
    finally:
        shutil.rmtree(short, ignore_errors=True)


def test_keys_are_taken_out_where_a_store_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)
    assert without_keys("storage=s3://a%2Fb:c%40d@bucket/x?region=y") == "storage=s3://bucket/x?region=y"
    assert [os.environ[name] for name in KEYS] == ["a/b", "c@d"]
    store = Store("s3://one:two@bucket/x?region=us-east-1")
    assert "two" not in repr(vars(store)) and os.environ[KEYS[1]] == "two"


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare")
def test_no_home_and_no_entry_in_passwd_will_do(tmp_path: Path) -> None:
    alone = ["unshare", "--user", "--map-user=54321", "--map-group=54321"]
    if subprocess.run([*alone, "true"], check=False).returncode:
        pytest.skip("user namespaces are not allowed here")
    hidden = {k: v for k, v in os.environ.items() if k not in ("HOME", "USER", "LOGNAME", "XDG_CACHE_HOME")}
    done = subprocess.run(
        [*alone, *command("executor=serial", f"storage={tmp_path}")],
        env={**hidden, "TMPDIR": str(tmp_path)}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob(".cache/lbdist/mnist1d*"))  # the data's place
