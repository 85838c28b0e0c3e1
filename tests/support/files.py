"""Data as others write it: MNIST's files, images in Parquet, a Kaldi experiment."""

from __future__ import annotations

import gzip
import io
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import kaldiio
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

CLASSES = 7
"""Of the frames of `utterances`."""


def write_idx(
    folder: Path, pixels: Mapping[str, np.ndarray], labels: Mapping[str, np.ndarray], compress: bool = False
) -> None:
    """MNIST's files of the parts `train` and `t10k`."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, found in labels.items():
        n = len(found)
        for kind, header, body in (
            ("images-idx3", struct.pack(">IIII", 2051, n, 28, 28), pixels[part]),
            ("labels-idx1", struct.pack(">II", 2049, n), found),
        ):
            data = header + body.tobytes()
            name = f"{part}-{kind}-ubyte"
            if compress:
                (folder / f"{name}.gz").write_bytes(gzip.compress(data))
            else:
                (folder / name).write_bytes(data)


def encode(image: np.ndarray, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, kind, **({"lossless": True} if kind == "WEBP" else {}))
    return stream.getvalue()


def write_parquet(
    file: Path,
    images: list[bytes | None],
    labels: list[int | None],
    image: str = "image",
    label: str = "label",
) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    structs = pa.array(
        [{"bytes": data, "path": None} for data in images], pa.struct({"bytes": "binary", "path": "string"})
    )
    pq.write_table(pa.table({image: structs, label: pa.array(labels, pa.int64())}), file, row_group_size=3)
    return file


def utterances(count: int, dimension: int = 40, seed: int = 0) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Frames of different lengths, and the class of each."""
    random = np.random.default_rng(seed)
    found = {}
    for number in range(count):
        length = int(random.integers(5, 30))
        frames = random.normal(3.0, 2.0, (length, dimension)).astype("f4")
        labels = random.integers(0, CLASSES, length).astype("i4")
        found[f"spk{number % 3}_utt{number:03d}"] = frames, labels
    return found


def experiment(root: Path, data: str, labels: str, content: dict[str, Any]) -> None:
    """A data folder and an scp of pdf ids as Kaldi lays them out, with paths that start at `root`."""
    for folder in (root / data, (root / labels).parent):
        folder.mkdir(parents=True, exist_ok=True)
    here = Path.cwd()
    os.chdir(root)
    try:
        frames = {name: pair[0] for name, pair in content.items()}
        kaldiio.save_ark(f"{data}/feats.ark", frames, scp=f"{data}/feats.scp")
        pdfs = {name: pair[1] for name, pair in content.items()}
        kaldiio.save_ark(f"{labels}.ark", pdfs, scp=f"{labels}.scp")
    finally:
        os.chdir(here)
    speakers = "".join(f"{name} {name.split('_')[0]}\n" for name in content)
    (root / data / "utt2spk").write_text(speakers)
