"""A Kaldi experiment, written here in Kaldi's own formats, imported and read back frame by frame."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from dataclasses import fields
from pathlib import Path
from typing import Any

import kaldiio
import numpy as np
import pytest
import torch

from lbdist.data import kaldi
from lbdist.data.frames import Frames, read_shard
from lbdist.data.kaldi import Import, main
from lbdist.data.mapped import Mapped
from lbdist.errors import InputError
from lbdist.storage import Store
from lbdist.training.loop import train
from tests.support.cells import DENSE, make_cell
from tests.support.files import CLASSES, experiment, utterances


def keys(base: Path, into: Path, **changes: Any) -> dict[str, Any]:
    """Of an import of both splits."""
    known = {"features": base / "data" / "train", "labels": base / "ali" / "train.scp",
             "test_features": base / "data" / "test", "test_labels": base / "ali" / "test.scp",
             "root": base, "out": into}  # fmt: skip
    return {
        k: v if v is None or isinstance(v, float | int) else str(v) for k, v in {**known, **changes}.items()
    }


def framed(content: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """The frames between their neighbours by a plain loop, utterances in the order of their names."""
    inputs, labels = [], []
    for name in sorted(content):
        frames, classes = content[name]
        for at in range(len(frames)):
            around = [frames[min(max(at + shift, 0), len(frames) - 1)] for shift in range(-4, 5)]
            inputs.append(np.concatenate(around))
        labels.append(classes)
    return np.stack(inputs), np.concatenate(labels)


TRAIN, TEST = utterances(12), {f"t_{name}": pair for name, pair in utterances(4, seed=1).items()}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(kaldi, "UTTERANCES", 5)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    experiment(tmp_path / "s5", "data/train", "ali/train", TRAIN)
    experiment(tmp_path / "s5", "data/test", "ali/test", TEST)
    return tmp_path / "s5"


def test_every_frame_is_between_its_neighbours_and_has_its_label(root: Path, tmp_path: Path) -> None:
    content = Import(**keys(root, tmp_path / "out")).run()
    data = Frames(root=str(tmp_path / "out")).load()
    for split, known, part in ((data.train, TRAIN, "train"), (data.test, TEST, "test")):
        inputs, labels = framed(known)
        np.testing.assert_array_equal(split.inputs, inputs)
        np.testing.assert_array_equal(split.labels, labels)
        assert content["splits"][part]["frames"] == len(labels)
        assert content["splits"][part]["utterances"] == len(known)
    assert data.shape == (360,) and data.classes == CLASSES and data.train.inputs.dtype == np.float32
    assert [s["name"] for s in content["splits"]["train"]["shards"]] == [
        f"train-0000{number}.parquet" for number in range(3)
    ]
    few = Frames(root=str(tmp_path / "out"), train_samples=20, context=1).load()
    assert few.train.inputs.shape == (20, 120)
    rows = {row.tobytes() for row in framed(TRAIN)[0][:, 120:240]}
    assert {row.tobytes() for row in few.train.inputs} <= rows


@pytest.mark.parametrize("form", ["ark", "gz", "text", "compressed", "double"])
def test_kaldi_s_formats_are_one(form: str, root: Path, tmp_path: Path) -> None:
    frames = {name: pair[0] for name, pair in TRAIN.items()}
    labels = {name: pair[1] for name, pair in TRAIN.items()}
    other, given = tmp_path / "feats.ark", tmp_path / "pdf.ark"
    if form == "double":
        frames = {name: values.astype("f8") for name, values in frames.items()}
    method = 2 if form == "compressed" else None
    kaldiio.save_ark(str(other), frames, text=form == "text", compression_method=method)
    kaldiio.save_ark(str(given), labels)
    if form == "text":  # as ali-to-pdf writes them, without brackets
        lines = [f"{name} {' '.join(map(str, values))} \n" for name, values in labels.items()]
        given = tmp_path / "pdf.txt"
        given.write_text("".join(lines))
    if form == "gz":
        for file in (other, given):
            Path(f"{file}.gz").write_bytes(gzip.compress(file.read_bytes()))
        other, given = Path(f"{other}.gz"), Path(f"{given}.gz")
    Import(**keys(root, tmp_path / "out", features=other, labels=given)).run()
    found = Frames(root=str(tmp_path / "out")).load().train
    inputs, classes = framed(TRAIN)
    # compressed, a value is one of at least 63 in the range of its column, whose ends are of 16 bits
    steps = {name: np.ptp(f, 0) / 126 + np.ptp(f) / 2**15 + 0 * f for name, (f, _) in TRAIN.items()}
    bound, _ = framed({name: (steps[name], labels[name]) for name in TRAIN})
    assert (np.abs(found.inputs - inputs) <= (bound if form == "compressed" else 1e-6)).all()
    np.testing.assert_array_equal(found.labels, classes)


@pytest.mark.parametrize("kind", ["mean", "variance"])
def test_normalisation_is_by_speaker(kind: str, root: Path, tmp_path: Path) -> None:
    of_speaker: dict[str, list[np.ndarray]] = {}
    for name, (frames, _) in sorted({**TRAIN, **TEST}.items()):
        of_speaker.setdefault(name.split("_")[0], []).append(frames)
    sums = {}
    for speaker, parts in of_speaker.items():
        all_of_them = np.concatenate(parts).astype("f8")
        first = np.append(all_of_them.sum(0), len(all_of_them))
        sums[speaker] = np.stack([first, np.append((all_of_them**2).sum(0), 0)])
    for split in ("train", "test"):
        folder = root / "data" / split
        kaldiio.save_ark(str(folder / "cmvn.ark"), sums, scp=str(folder / "cmvn.scp"))
    Import(**keys(root, tmp_path / "out", cmvn=kind)).run()
    found = Frames(root=str(tmp_path / "out"), context=0).load().train.inputs
    at = 0
    for name in sorted(TRAIN):
        frames = TRAIN[name][0]
        whole = np.concatenate(of_speaker[name.split("_")[0]])
        known = frames - whole.mean(0)
        known = known / whole.std(0) if kind == "variance" else known
        np.testing.assert_allclose(found[at : at + len(frames)], known, atol=1e-4)
        at += len(frames)
    scp = root / "data" / "test" / "cmvn.scp"
    scp.write_text(scp.read_text().replace("t ", "t  "))  # other statistics are another import
    with pytest.raises(InputError, match=r"out=.*: must be a folder without an import of something else"):
        Import(**keys(root, tmp_path / "out", cmvn=kind)).run()
    scp.write_text("".join(line for line in scp.read_text().splitlines(True) if not line.startswith("t ")))
    with pytest.raises(InputError, match=r"cmvn.scp and utt2spk have no statistics for t_"):
        Import(**keys(root, tmp_path / "other", cmvn=kind)).run()


def test_some_utterances_are_held_out(root: Path, tmp_path: Path) -> None:
    changes = {"test_features": None, "test_labels": None, "held_out": 0.3}
    content = Import(**keys(root, tmp_path / "out", **changes)).run()
    splits = content["splits"]
    assert (splits["train"]["utterances"], splits["test"]["utterances"]) == (8, 4)
    names = {
        part: [
            name
            for shard in splits[part]["shards"]
            for name in read_shard(Store(tmp_path / "out"), shard["name"])["utterance"].to_pylist()
        ]
        for part in splits
    }
    assert sorted(names["train"] + names["test"]) == sorted(TRAIN)


def _lose(root: Path) -> None:
    lines = (root / "ali" / "train.scp").read_text().splitlines()
    (root / "ali" / "train.scp").write_text("\n".join(lines[:3] + lines[5:]))


def _lose_frames(root: Path) -> None:
    lines = (root / "data" / "train" / "feats.scp").read_text().splitlines()
    (root / "data" / "train" / "feats.scp").write_text("\n".join(lines[1:]))


def _cut(root: Path) -> None:
    file = root / "data" / "train" / "feats.ark"
    file.write_bytes(file.read_bytes()[:-700])


def _garble(root: Path) -> None:
    file = root / "ali" / "train.ark"
    content = bytearray(file.read_bytes())
    content[500:700] = bytes(200)
    file.write_bytes(content)


def _rewrite(change: Any) -> Any:
    def harm(root: Path) -> None:
        for folder in ("data", "ali"):
            shutil.rmtree(root / folder)
        experiment(root, "data/train", "ali/train", {**TRAIN, "spk0_utt003": change(*TRAIN["spk0_utt003"])})
        experiment(root, "data/test", "ali/test", TEST)

    return harm


def _pipe(root: Path) -> None:
    (root / "ali" / "train.scp").write_text("spk0_utt000 touch harmed |\n")


def _pickled(root: Path) -> None:
    class Harm:
        def __reduce__(self) -> Any:
            return os.system, ("touch harmed",)

    (root / "ali" / "bad").write_bytes(b"PKL" + pickle.dumps(Harm()))
    lines = (root / "ali" / "train.scp").read_text().splitlines()
    (root / "ali" / "train.scp").write_text("\n".join(["spk0_utt000 ali/bad:0", *lines[1:]]))


def _both(root: Path) -> None:
    shutil.rmtree(root / "data" / "test")
    experiment(root, "data/test", "ali/test", {"spk0_utt003": TRAIN["spk0_utt003"]})


def _nan(frames: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    frames = frames.copy()
    frames[2, 3] = np.nan
    return frames, labels


@pytest.mark.parametrize(
    ("harm", "changes", "says"),
    [
        (_lose, {}, "labels: .*train.scp: spk0_utt003 has no alignment, and 1 others lack"),
        (_lose_frames, {}, "features: .*feats.scp: spk0_utt000 has no frames, and 0 others lack"),
        (_rewrite(lambda x, y: (x[:, :39], y)), {}, "spk0_utt003 has 39 numbers per frame; must have 40"),
        (_rewrite(lambda x, y: (x, y[:-2])), {}, r"train.scp: spk0_utt003 has \d+ labels for \d+ frames"),
        (_rewrite(lambda x, y: (x, y - 9)), {}, "spk0_utt003 has the label -.; allowed are 0 or more"),
        (_rewrite(lambda x, y: (x, y * 0 + 9)), {"classes": 9}, "has the label 9; allowed are 0 to 8"),
        (_rewrite(_nan), {}, "feats.scp: spk0_utt003 has numbers that are not finite"),
        (_rewrite(lambda x, y: (x, x[:, 0])), {}, "spk0_utt003 must be whole numbers, one per frame"),
        (_cut, {}, "features: .*feats.ark: spk2_utt011 cannot be read"),
        (_garble, {}, "labels: .*train.ark: spk[0-9]_utt[0-9]+ cannot be read"),
        (_pipe, {}, "train.scp: line 1: must be UTTERANCE FILE:OFFSET, not 'spk0_utt000 touch harmed |'"),
        (_pickled, {}, "bad: spk0_utt000 cannot be read .there are no numbers"),
        (_both, {}, "test_features: .*feats.scp: spk0_utt003 is in the training split too"),
        (None, {"root": "/nowhere"}, "line 1: /nowhere/.* is missing; paths start at root=/nowhere"),
        (None, {"labels": "nothing.scp"}, "lbdist: labels=nothing.scp: must be a file that is there"),
        (None, {"cmvn": "mean"}, "lbdist: features=.*cmvn.scp: must be a file that is there"),
        (None, {"dimension": 0}, "lbdist: dimension=0: must be at least 1"),
        (None, {"dimension": "x"}, "lbdist: dimension=x: must be a whole number"),
        (None, {"held_out": 0.5}, "lbdist: test_features=.*: must be given with test_labels, or held_out"),
        (None, {"test_labels": None}, "lbdist: test_labels=None: must be given with test_features"),
        (None, {"out": None}, "lbdist: out=None: must be given; --help tells the keys"),
        (None, {"root": "[x"}, "lbdist: root=.x: must be one value"),
        (None, {"missing": "guess"}, "lbdist: missing=guess: must be refuse or skip"),
        (None, {"typo": 1}, "lbdist: typo=1: no such key; allowed: classes, cmvn"),
    ],
)
def test_what_is_wrong_is_one_line_and_nothing_is_written(
    harm: Any, changes: dict[str, Any], says: str, root: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    if harm:
        harm(root)
    given = {k: v for k, v in keys(root, tmp_path / "out", **changes).items() if v is not None}
    assert main(["classes=null", *(f"{key}={value}" for key, value in given.items())]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    with pytest.raises(AssertionError, match=says):
        raise AssertionError(err)
    assert not (tmp_path / "out").exists() and not (tmp_path / "harmed").exists()


def test_the_command_tells_its_keys_and_what_it_needs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["--help"]) == main([]) == 0
    told = capsys.readouterr().out
    assert all(f"    {field.name} " in told or f"    {field.name}\n" in told for field in fields(Import))
    assert main(["features"]) == 2
    assert capsys.readouterr().err == "lbdist: features: must be KEY=VALUE or --help\n"
    monkeypatch.setitem(sys.modules, "kaldiio", None)  # as where it is not installed
    assert main(["features=x"]) == 2
    assert capsys.readouterr().err == "lbdist: kaldiio is not installed: pip install 'lbdist[kaldi]'\n"


def test_utterances_that_lack_something_are_skipped_where_one_says_so(root: Path, tmp_path: Path) -> None:
    _lose(root)
    content = Import(**keys(root, tmp_path / "out", missing="skip")).run()
    assert content["splits"]["train"]["utterances"] == 10
    assert content["left_out"] == ["spk0_utt003", "spk1_utt004"]


def test_an_import_goes_on_where_it_ended_and_refuses_another(root: Path, tmp_path: Path) -> None:
    """Ended by a kill; then with a shard lost, one garbled, and of changed sources."""
    whole = Import(**keys(root, tmp_path / "whole")).run()
    code = (
        "import sys; from lbdist.data import kaldi; from lbdist.storage import Store; kaldi.UTTERANCES = 5\n"
        "write, told = Store.write, []\n"
        "def slow(*args, **more):\n"
        "    told.append(write(*args, **more)); print('written', flush=True)\n"
        "    import time; time.sleep(30 if len(told) == 2 else 0)\n"
        "Store.write = slow; kaldi.main(sys.argv[1:])"
    )
    given = {k: v for k, v in keys(root, tmp_path / "out").items() if v is not None}
    arguments = [f"{key}={value}" for key, value in given.items()]
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    written = 0
    while written < 2:
        written += process.stdout.readline() == "written\n"
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    out = tmp_path / "out"
    assert sorted(file.name for file in out.iterdir()) == ["train-00000.parquet", "train-00001.parquet"]
    with pytest.raises(InputError, match=r"manifest.json is missing; python -m lbdist.data.kaldi makes"):
        Frames(root=str(out)).load()
    kept = (out / "train-00000.parquet").stat().st_mtime_ns
    time.sleep(0.01)
    (out / "train-00001.parquet").write_bytes((out / "train-00001.parquet").read_bytes()[:-100])
    again = Import(**given).run()
    assert (out / "train-00000.parquet").stat().st_mtime_ns == kept
    assert again["splits"] == whole["splits"] and json.loads((out / "manifest.json").read_text())
    (out / "test-00000.parquet").unlink()
    with pytest.raises(InputError, match=r"test-00000.parquet is missing"):
        Frames(root=str(out)).load()
    assert Import(**given).run()["splits"] == whole["splits"]
    (out / "test-00000.parquet").write_bytes((out / "train-00002.parquet").read_bytes())
    with pytest.raises(InputError, match=r"test-00000.parquet is not as it was written"):
        Frames(root=str(out)).load()
    assert Import(**given).run()["splits"] == whole["splits"]
    assert Frames(root=str(out)).load().test.digest == Frames(root=str(tmp_path / "whole")).load().test.digest
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    with pytest.raises(InputError, match=r"out=.*: must be a folder without an import of something else"):
        Import(**{**given, "dimension": 40, "missing": "skip"}).run()
    assert before == {file.name: file.read_bytes() for file in out.iterdir()}


def test_training_is_the_same_from_memory_and_from_a_file_that_is_sent(root: Path, tmp_path: Path) -> None:
    Import(**keys(root, tmp_path / "out")).run()
    cell = make_cell(network={**DENSE, "inputs": 360, "classes": CLASSES}, epochs=2, validation_fraction=0.2)
    ends = []
    for gib in (None, 0):
        data = Frames(root=str(tmp_path / "out"), memory_gib=gib).load().validation_split(0.2)
        assert isinstance(data.train, Mapped) == (gib == 0) and data.train.inputs.dtype == np.float32
        ends.append(train(cell, pickle.loads(pickle.dumps(data)))[1])
    assert torch.equal(*ends)


def test_memory_holds_a_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten times the utterances take the memory of one import, importing and reading alike."""
    monkeypatch.setattr(kaldi, "UTTERANCES", 4)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    random = np.random.default_rng(0)
    peaks = []
    for count in (20, 200):
        frames = random.normal(size=(300, 40)).astype("f4")
        content = {f"a_{n:04d}": (frames, np.zeros(300, "i4") + n % 2) for n in range(count)}
        root, out = tmp_path / f"s{count}", tmp_path / f"out{count}"
        experiment(root, "data/train", "ali/train", content)
        changes = {"test_features": None, "test_labels": None, "held_out": 0.1}
        tracemalloc.start()
        Import(**keys(root, out, **changes)).run()
        imported = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        data = Frames(root=str(out), memory_gib=0).load()
        peaks.append((imported, tracemalloc.get_traced_memory()[1]))
        tracemalloc.stop()
        assert isinstance(data.train, Mapped) and len(data.train) == 270 * count
        at = data.train.take(np.arange(5))
        np.testing.assert_array_equal(at.inputs, framed({"a": content["a_0000"]})[0][:5])
    assert peaks[1][0] < 2 * peaks[0][0]
    # what of it grows is 16 bytes a frame, its label and position, where its numbers are 1,440
    assert peaks[1][1] - peaks[0][1] < 180 * 300 * 100
