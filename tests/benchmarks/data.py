"""How long data take to be ready, beside the least that it could take.

python tests/benchmarks/data.py [pictures=60000] [side=28] [rows=1000000]
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
from PIL import Image

from lbdist.data.folder import Folder
from lbdist.data.table import Table


def seconds(what: Callable[[], object]) -> float:
    begin = time.perf_counter()
    what()
    return time.perf_counter() - begin


def decode(file: str) -> int:
    """What Pillow alone does."""
    with Image.open(file) as image:
        return len(image.tobytes())


def folder(root: Path, count: int, side: int) -> None:
    """A folder of pictures: lbdist's first and later readings, and Pillow's decoding on all cores."""
    random = np.random.default_rng(0)
    kind = "png" if side < 64 else "jpg"
    smooth = random.integers(0, 256, (64, side // 4, side // 4, 3), np.uint8).repeat(4, 1).repeat(4, 2)
    for number in range(count):
        file = root / "train" / str(number % 10) / f"{number}.{kind}"
        file.parent.mkdir(parents=True, exist_ok=True)
        image = np.roll(smooth[number % 64], number, 0)
        Image.fromarray(image if kind == "jpg" else image[..., 0]).save(file)
    files = [str(file) for file in root.rglob(f"*.{kind}")]
    with multiprocessing.Pool(len(os.sched_getaffinity(0))) as pool:
        bare = min(seconds(lambda: pool.map(decode, files, chunksize=64)) for _ in range(3))
    first = seconds(Folder(root=str(root), held_out=0.1).load)
    again = min(seconds(Folder(root=str(root), held_out=0.1).load) for _ in range(3))
    print(
        f"{count:,} pictures of {side} x {side} ({kind}): Pillow on all cores {bare:.1f}, lbdist {first:.1f}"
    )
    print(f"s ({first / bare:.2f} times), later {again:.1f} s ({again / bare:.2f} times)")


def table(root: Path, rows: int) -> None:
    """A CSV of 20 numbers and a category."""
    random = np.random.default_rng(0)
    columns = {f"c{at}": random.normal(size=rows).astype("f4") for at in range(20)}
    columns |= {"town": np.array(["Ulm", "Bonn", "Kiel"])[random.integers(0, 3, rows)]}
    pyarrow.csv.write_csv(pa.table({**columns, "label": random.integers(0, 2, rows)}), root / "rows.csv")
    source = {
        "root": str(root / "rows.csv"),
        "held_out": 0.1,
        "categories": ["town"],
        "standardise": "inputs",
    }
    bare = min(seconds(lambda: pyarrow.csv.read_csv(root / "rows.csv")) for _ in range(3))
    took = min(seconds(Table(**source).load) for _ in range(3))  # type: ignore[arg-type]
    print(f"{rows:,} rows of CSV: pyarrow alone {bare:.1f} s; lbdist {took:.1f} s ({took / bare:.2f} times)")


def main() -> None:
    given = dict(word.split("=") for word in sys.argv[1:])
    with tempfile.TemporaryDirectory() as root:
        os.environ["XDG_CACHE_HOME"] = f"{root}/cache"
        (Path(root) / "pictures").mkdir()
        folder(Path(root) / "pictures", int(given.get("pictures", 60000)), int(given.get("side", 28)))
        table(Path(root), int(given.get("rows", 1000000)))


if __name__ == "__main__":
    main()
