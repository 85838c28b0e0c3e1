from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import ClassVar

import numpy as np
import pytest
from torchvision import datasets

from lbdist.data.vision import Vision
from lbdist.errors import InputError
from tests.support.files import write_idx

RNG = np.random.default_rng(0)
SIZES = {"train": 12, "t10k": 5}
PIXELS = {part: RNG.integers(0, 256, (n, 28, 28), np.uint8) for part, n in SIZES.items()}
LABELS = {part: RNG.integers(0, 10, n, np.uint8) for part, n in SIZES.items()}


@pytest.mark.parametrize(("dataset", "folder"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")])
def test_reads_idx(tmp_path: Path, dataset: str, folder: str) -> None:
    write_idx(tmp_path / folder / "raw", PIXELS, LABELS)
    data = Vision(dataset=dataset, root=str(tmp_path), download=False).load()
    assert (data.shape, data.classes) == ((1, 28, 28), 10)
    assert data.train.inputs.dtype == np.uint8 and data.train.labels.dtype == np.int64
    assert np.array_equal(data.train.inputs[:, 0], PIXELS["train"])
    assert np.array_equal(data.test.labels, LABELS["t10k"])


@pytest.mark.parametrize(
    ("dataset", "source", "key", "classes"),
    [("cifar10", datasets.CIFAR10, "labels", 10), ("cifar100", datasets.CIFAR100, "fine_labels", 100)],
)
def test_reads_cifar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dataset: str, source: type, key: str, classes: int
) -> None:
    """Batches of 4, with torchvision's checksums of the real files put aside."""
    for name in ("train_list", "test_list"):
        monkeypatch.setattr(source, name, [[file, None] for file, _ in getattr(source, name)])
    monkeypatch.setattr(source, "meta", {**source.meta, "md5": None})  # type: ignore[attr-defined]
    folder = tmp_path / source.base_folder  # type: ignore[attr-defined]
    folder.mkdir()
    pixels = RNG.integers(0, 256, (4, 3, 32, 32), np.uint8)
    for file, _ in source.train_list + source.test_list:  # type: ignore[attr-defined]
        batch = {"data": pixels.reshape(4, -1), key: [0, 1, 2, classes - 1]}
        (folder / file).write_bytes(pickle.dumps(batch))
    (folder / source.meta["filename"]).write_bytes(  # type: ignore[attr-defined]
        pickle.dumps({source.meta["key"]: []})  # type: ignore[attr-defined]
    )
    data = Vision(dataset=dataset, root=str(tmp_path), download=False).load()
    assert (data.shape, data.classes) == ((3, 32, 32), classes)
    assert np.array_equal(data.train.inputs[:4], pixels) and data.train.inputs.flags.c_contiguous
    assert data.test.labels.tolist() == [0, 1, 2, classes - 1]


def test_unchecked_pickles_are_not_opened(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "data_batch_1").write_bytes(pickle.dumps({}))
    with pytest.raises(InputError, match="cifar10 is there but cannot be read"):
        Vision(dataset="cifar10", root=str(tmp_path)).load()


class Silent(SimpleHTTPRequestHandler):
    asked: ClassVar[list[str]] = []

    def log_message(self, format: str, *args: object) -> None:
        if self.command == "GET":
            self.asked.append(self.path)


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[str]:
    """The address of a server on loopback that has MNIST's files."""
    write_idx(tmp_path / "mirror", PIXELS, LABELS, compress=True)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Silent, directory=str(tmp_path / "mirror"))) as server:
        thread = Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def test_downloads_whole_or_not_at_all(
    tmp_path: Path, mirror: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(datasets.MNIST, "mirrors", [mirror])
    root = tmp_path / "root"
    with pytest.raises(InputError, match="its download failed"):  # the checksums are not the real ones
        Vision(root=str(root)).load()
    assert list(root.iterdir()) == []
    monkeypatch.setattr(datasets.MNIST, "resources", [(name, None) for name, _ in datasets.MNIST.resources])
    data = Vision(root=str(root)).load()
    assert np.array_equal(data.test.inputs[:, 0], PIXELS["t10k"])
    assert [path.name for path in root.iterdir()] == ["MNIST"]
    assert capfd.readouterr() == ("", "")


def test_many_download_once_and_what_is_damaged_later_is_seen(
    tmp_path: Path, mirror: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.MNIST, "mirrors", [mirror])
    monkeypatch.setattr(datasets.MNIST, "resources", [(name, None) for name, _ in datasets.MNIST.resources])
    root, program = tmp_path / "root", tmp_path / "load.py"
    program.write_text(
        "import sys\nfrom torchvision import datasets\n"
        f"datasets.MNIST.mirrors = [{mirror!r}]\n"
        "datasets.MNIST.resources = [(name, None) for name, _ in datasets.MNIST.resources]\n"
        "from lbdist.data.vision import Vision\nVision(root=sys.argv[1]).load()\n"
    )
    Silent.asked.clear()
    Vision(root=str(tmp_path / "alone")).load()
    alone = sorted(Silent.asked)
    Silent.asked.clear()
    several = [subprocess.Popen([sys.executable, str(program), str(root)]) for _ in range(3)]
    assert [process.wait(60) for process in several] == [0, 0, 0]
    assert sorted(Silent.asked) == alone
    file = root / "MNIST" / "raw" / "train-images-idx3-ubyte"
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match="a file is not as it was downloaded"):
        Vision(root=str(root)).load()


@pytest.mark.parametrize("dataset", ["mnist", "fashion_mnist", "cifar10", "cifar100"])
def test_without_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dataset: str) -> None:
    nowhere = "http://127.0.0.1:9/"
    for source in (datasets.MNIST, datasets.FashionMNIST):
        monkeypatch.setattr(source, "mirrors", [nowhere])
    for source in (datasets.CIFAR10, datasets.CIFAR100):
        monkeypatch.setattr(source, "url", nowhere)
    for download, message in ((False, "download=false"), (True, "download failed")):
        with pytest.raises(InputError, match=message) as caught:
            Vision(dataset=dataset, root=str(tmp_path), download=download).load()
        line = str(caught.value)
        assert line.startswith(f"data.root={tmp_path}: {dataset} is not there") and "\n" not in line
        assert "torchvision's layout" in line and "data=parquet data.root=DIR" in line


def test_a_truncated_file(tmp_path: Path) -> None:
    write_idx(tmp_path / "MNIST/raw", PIXELS, LABELS)
    file = tmp_path / "MNIST/raw/train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(InputError, match=r"mnist is there but cannot be read .*delete") as caught:
        Vision(root=str(tmp_path)).load()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"), [("dataset", "imagenet"), ("root", 3), ("download", "yes"), ("test_samples", 0)]
)
def test_wrong_fields(field: str, value: object) -> None:
    with pytest.raises(InputError, match=rf"data\.{field}={value}: must be"):
        Vision(**{field: value})  # type: ignore[arg-type]
