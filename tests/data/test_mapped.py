"""Samples in a file of the cache: the same ones, in any process, after any end of one."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lbdist.data.base import Dataset
from lbdist.data.mapped import Mapped, limit
from lbdist.data.parquet import Parquet
from lbdist.errors import InputError
from lbdist.training.loop import train
from tests.support.cells import CONVOLUTIONAL, make_cell
from tests.support.commands import own_mounts
from tests.support.files import encode, write_parquet

IMAGES = np.random.default_rng(0).integers(0, 256, (90, 8, 8, 3), np.uint8)
LABELS = [int(label) for label in np.random.default_rng(1).integers(0, 4, 90)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    encoded = [encode(image) for image in IMAGES]
    write_parquet(tmp_path / "root" / "train.parquet", encoded[:70], LABELS[:70])
    write_parquet(tmp_path / "root" / "test.parquet", encoded[70:], LABELS[70:])
    return tmp_path / "root"


def files(folder: Path) -> dict[str, int]:
    """What the cache holds, and when it was written."""
    return {
        file.name: file.stat().st_mtime_ns for file in (folder.parent / "cache").rglob("*") if file.is_file()
    }


def same(one: Dataset, other: Dataset) -> None:
    for part in ("train", "test"):
        a, b = getattr(one, part), getattr(other, part)
        assert a.inputs.dtype == b.inputs.dtype == np.uint8
        assert np.array_equal(a.inputs, b.inputs) and np.array_equal(a.labels, b.labels)


@pytest.mark.parametrize("samples", [None, 40])
def test_a_file_holds_what_memory_would(folder: Path, samples: int | None) -> None:
    fields = {"root": str(folder), "classes": 4, "train_samples": samples}
    held, mapped = Parquet(**fields).load(), Parquet(**fields, memory_gib=0).load()
    assert not isinstance(held.train, Mapped) and files(folder)
    assert isinstance(mapped.train, Mapped) and isinstance(mapped.train.inputs, np.memmap)
    assert not mapped.train.inputs.flags.writeable
    same(held, mapped)
    same(held.validation_split(0.2), mapped.validation_split(0.2))
    assert isinstance(mapped.validation_split(0.2).train, Mapped)
    written = files(folder)
    assert len(written) == 4 and not any(name.startswith(".") for name in written)
    again = Parquet(**fields, memory_gib=0).load()
    same(held, again)
    same(held.validation_split(0.2), again.validation_split(0.2))
    assert files(folder) == written  # nothing was made twice
    few = mapped.train.first(16)
    assert not isinstance(few, Mapped) and np.array_equal(few.inputs, held.train.inputs[:16])
    larger = Parquet(**fields, memory_gib=1).load()
    assert not isinstance(larger.train, Mapped)
    assert limit(None) > 2**20


def test_other_files_are_other_samples(folder: Path) -> None:
    def load(**fields: object) -> Dataset:
        return Parquet(root=str(folder), classes=4, memory_gib=0, **fields).load()  # type: ignore[arg-type]

    first = load()
    assert np.array_equal(load(channels=1).train.inputs[0].shape, (1, 8, 8))
    write_parquet(folder / "train.parquet", [encode(image) for image in IMAGES[20:]], LABELS[20:])
    assert np.array_equal(load().train.inputs, IMAGES[20:].transpose(0, 3, 1, 2))
    assert np.array_equal(first.train.inputs, IMAGES[:70].transpose(0, 3, 1, 2))  # is what it was


def test_a_process_is_sent_how_to_make_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """From another working directory; on another node, whose cache is empty; beside other data."""
    monkeypatch.chdir(folder.parent)
    data = Parquet(root="root", classes=4, memory_gib=0).load().validation_split(0.2)
    sent = pickle.dumps(data)
    assert len(sent) < data.train.inputs.nbytes / 2
    monkeypatch.chdir("/")
    same(pickle.loads(sent), data)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    same(pickle.loads(sent), data)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "third"))
    write_parquet(folder / "train.parquet", [encode(image) for image in IMAGES[20:]], LABELS[20:])
    with pytest.raises(InputError, match=r"^data: data\.root='/.*/root' gives other samples on this node"):
        pickle.loads(sent)


def test_what_a_killed_process_left_is_not_read(folder: Path) -> None:
    """Cut files, and files that were never whole."""
    source = Parquet(root=str(folder), classes=4, memory_gib=0)
    expected = source.load()
    written = files(folder)
    for file in (folder.parent / "cache").rglob("*.npy"):
        content = file.read_bytes()
        file.unlink()
        file.write_bytes(content[: len(content) // 2])
        file.with_name(".123.npy").write_bytes(content[:100])
    same(source.load(), expected)
    assert files(folder).keys() == written.keys()


def test_two_processes_make_it_once(folder: Path) -> None:
    program = (
        "import sys; from lbdist.data.parquet import Parquet\n"
        "print(Parquet(root=sys.argv[1], classes=4, memory_gib=0).load().train.sum)"
    )
    command = [sys.executable, "-c", program, str(folder)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    one, other = (process.communicate(timeout=60)[0] for process in both)
    assert one == other and len(one) == 65 and len(files(folder)) == 2


def test_training_is_the_same_to_the_bit(folder: Path) -> None:
    cell = make_cell(network=CONVOLUTIONAL, epochs=2, validation_fraction=0.2)
    ends = []
    for gib in (None, 0):
        data = Parquet(root=str(folder), classes=4, memory_gib=gib).load().validation_split(0.2)
        ends.append(train(cell, data)[1])
    assert torch.equal(*ends)


@pytest.mark.skipif(not own_mounts(), reason="this machine gives no mount of one's own")
def test_a_full_disk_is_one_line(folder: Path) -> None:
    cache = folder.parent / "cache"
    cache.mkdir()
    program = (
        "import sys; from lbdist.data.parquet import Parquet\n"
        "try: Parquet(root=sys.argv[1], classes=4, memory_gib=0).load()\n"
        "except ValueError as error: print(error)"
    )
    script = f"mount -t tmpfs -o size=8k tmpfs {cache} || exit 99\n{sys.executable} -c '{program}' {folder}"
    script += f"; find {cache} -type f"
    done = subprocess.run(["unshare", "-Urm", "sh", "-c", script], capture_output=True, text=True, timeout=60)
    said = done.stdout.splitlines()
    assert said[0].startswith("data.memory_gib: the samples take 1.2") and "XDG_CACHE_HOME" in said[0], done
    assert len(said) == 1


@pytest.mark.parametrize("value", [-1, "much", True])
def test_what_is_no_size_is_refused(folder: Path, value: object) -> None:
    with pytest.raises(InputError, match=rf"^data\.memory_gib={value}: must be a number of at least 0"):
        Parquet(root=str(folder), memory_gib=value)  # type: ignore[arg-type]
