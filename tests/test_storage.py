"""Stores: a folder, another file system, S3; what is written is whole, and the lock holds and ends."""

import contextlib
import os
import pickle
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lbdist import storage
from lbdist.errors import InputError
from lbdist.storage import Store
from tests.support.commands import here


@pytest.fixture(params=["local", "file", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "s3":
        return Store(request.getfixturevalue("s3").format(tmp_path.name))
    return Store(tmp_path / "deep" if request.param == "local" else f"file://{tmp_path}/deep")


def test_files_come_back(store: Store) -> None:
    assert store.names() == [] and not store.exists("a")
    with pytest.raises(FileNotFoundError):
        store.read("a")
    store.write("cells/x/rows", b"1")
    store.write("cells/y", b"\0" * 100_000)
    store.write("cells/x/rows", b"22", durable=False)  # replaces
    assert store.read("cells/x/rows") == b"22" and len(store.read("cells/y")) == 100_000
    assert store.names() == store.names("cells") == ["cells/x/rows", "cells/y"]
    assert store.names("cells/x") == ["cells/x/rows"] and store.names("nowhere") == []
    assert store.exists("cells/y") and not store.exists("cells/x")
    below = store / "cells"
    assert below.names() == ["x/rows", "y"] and below.read("y") == store.read("cells/y")
    again = pickle.loads(pickle.dumps(below))
    assert again.names() == ["x/rows", "y"]
    assert Store(below.root).names() == ["x/rows", "y"]  # the root alone is enough
    for name in ("cells/x", "cells/y", "never"):
        store.remove(name)
    assert store.names() == []


def test_a_write_that_fails_keeps_the_old_file(store: Store) -> None:
    store.write("file", b"old")
    with pytest.raises(TypeError):
        store.write("file", "not bytes")  # type: ignore[arg-type]
    assert store.read("file") == b"old" and store.names() == ["file"]


def test_one_holder_at_a_time(store: Store) -> None:
    with (
        store.lock(),
        pytest.raises(InputError, match="another lbdist is at work there") as caught,
        Store(store.root).lock(),
    ):
        pass
    assert "\n" not in str(caught.value) and "secret" not in str(caught.value)
    with store.lock():
        pass


def test_a_lease_is_kept_while_its_holder_lives_and_ends_by_itself(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "LEASE_SECONDS", 2.0)
    store = Store(s3.format(tmp_path.name))
    with store.lock():
        time.sleep(3)
        with pytest.raises(InputError, match="another lbdist"), store.lock():
            pass
    program = (
        "import os, sys; from lbdist import storage; storage.LEASE_SECONDS = 2.0\n"
        "with storage.Store(sys.argv[1]).lock(): os._exit(9)"
    )
    done = subprocess.run([sys.executable, "-c", program, store.root], timeout=60)
    assert done.returncode == 9
    with pytest.raises(InputError, match="another lbdist"), store.lock():
        pass
    time.sleep(2)
    with store.lock():
        pass


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    program = "import os, sys; from lbdist.storage import Store\nwith Store(sys.argv[1]).lock(): os._exit(9)"
    assert subprocess.run([sys.executable, "-c", program, str(tmp_path)], timeout=60).returncode == 9
    with Store(tmp_path).lock():
        pass


@pytest.mark.parametrize("root", ["nope://bucket/x", "s3://", "file://"])
def test_a_uri_that_cannot_be_opened_is_one_line(root: str) -> None:
    with pytest.raises(InputError, match="storage=") as caught:
        Store(root)
    assert "\n" not in str(caught.value)


def test_a_place_that_cannot_be_written_is_one_line() -> None:
    said = "storage: /dev/null/x must be a folder to write in"
    with pytest.raises(InputError, match=said), Store("/dev/null/x").lock():
        pass


def test_wrong_credentials_are_one_line(tmp_path: Path, cache: str) -> None:
    """Against a server that looks at them; nothing is started."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "INITIAL_NO_AUTH_ACTION_COUNT": "0"}
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-p", str(port)],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        end = time.monotonic() + 30
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert time.monotonic() < end
            time.sleep(0.2)
        options = f"scheme=http&region=us-east-1&endpoint_override=127.0.0.1:{port}"
        root = f"storage=s3://key:secret@results/x?{options}"
        out = here(tmp_path, "experiment=gap", "study.equal_loss=null", cache, root, status=2)
    finally:
        server.kill()
        server.wait()
    assert "Ray" not in out and "secret" not in out
    (line,) = [line for line in out.splitlines() if line.startswith("lbdist: ")]
    assert line.startswith("lbdist: storage=s3://results/x: must be a place"), line
