from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from lbdist.data import mnist1d
from lbdist.data.mnist1d import MNIST1D
from lbdist.errors import InputError


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder filled by one generation, which leaves the global generators alone."""
    folder = tmp_path_factory.mktemp("cache") / "made"
    np.random.seed(3)
    random.seed(3)
    expected = np.random.rand(), random.random()
    np.random.seed(3)
    random.seed(3)
    MNIST1D(root=str(folder)).load()
    assert (np.random.rand(), random.random()) == expected
    return folder


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Generation replaced by constants; the list holds the seeds asked for."""
    asked: list[int] = []

    def generate(seed: int) -> dict[str, np.ndarray]:
        asked.append(seed)
        x, y = np.full((4000, 40), seed, np.float32), np.zeros(4000, np.int64)
        return {"x": x, "y": y, "x_test": x, "y_test": y}

    monkeypatch.setattr(mnist1d, "_generate", generate)
    return asked


def test_generated_data(cache: Path, fake: list[int]) -> None:
    data = MNIST1D(root=str(cache)).load()
    assert fake == []  # read from the cache
    assert (len(data.train), len(data.test), data.shape, data.classes) == (4000, 4000, (40,), 10)
    assert data.train.inputs.dtype == np.float32 and data.train.labels.dtype == np.int64
    labels = np.concatenate([data.train.labels, data.test.labels])
    assert (np.bincount(labels) == 800).all()
    joined = np.concatenate([data.train.inputs, data.test.inputs])
    assert joined.mean() == pytest.approx(0, abs=1e-5) and joined.std() == pytest.approx(1, abs=1e-5)
    # golden: the package's version 0.0.2 with seed 42
    assert data.train.labels[:8].tolist() == [8, 8, 2, 1, 8, 3, 4, 0]
    assert data.train.inputs[0, :3].tolist() == pytest.approx([-0.790538, -0.711541, -0.503412], abs=1e-5)
    assert [path.suffix for path in cache.iterdir()] == [".npz"]


def test_a_seed_has_its_own_file(tmp_path: Path, fake: list[int]) -> None:
    for seed in (1, 2, 1, 2):
        assert MNIST1D(root=str(tmp_path), seed=seed).load().train.inputs[0, 0] == seed
    assert fake == [1, 2]


@pytest.mark.parametrize("keep", [0, 100, 200_000, None])
def test_a_damaged_cache_is_made_again(
    tmp_path: Path, fake: list[int], keep: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cut, or with one bit flipped; a line says so."""
    MNIST1D(root=str(tmp_path)).load()
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 3] ^= 1
    path.write_bytes(flipped if keep is None else whole[:keep])
    assert capsys.readouterr().err == ""
    assert MNIST1D(root=str(tmp_path)).load().train.inputs[0, 0] == 42
    assert fake == [42, 42] and path.read_bytes() == whole
    assert capsys.readouterr().err == f"lbdist: {path} is damaged; the signals are generated again\n"


def test_a_cache_of_another_shape_is_made_again(tmp_path: Path, fake: list[int]) -> None:
    MNIST1D(root=str(tmp_path)).load()
    (path,) = tmp_path.iterdir()
    np.savez(path, **dict.fromkeys(("x", "y", "x_test", "y_test"), np.zeros(3)))
    assert MNIST1D(root=str(tmp_path)).load().shape == (40,)
    assert fake == [42, 42]


def test_an_unwritable_cache_is_done_without(tmp_path: Path, fake: list[int]) -> None:
    (tmp_path / "file").write_text("")
    assert len(MNIST1D(root=str(tmp_path / "file/below"), train_samples=7).load().train) == 7


def test_default_cache(tmp_path: Path, fake: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    MNIST1D().load()
    assert list((tmp_path / "lbdist").glob("mnist1d-*-seed42.npz"))
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    MNIST1D().load()
    assert list((tmp_path / "home/.cache/lbdist").iterdir())


@pytest.mark.parametrize("seed", [-1, 2**32, 1.0, None])
def test_wrong_seed(seed: object) -> None:
    with pytest.raises(InputError, match=r"data\.seed="):
        MNIST1D(seed=seed)  # type: ignore[arg-type]
