"""Files that are damaged, missing, or in the way: set aside with a line, computed again, the same table."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lbdist import results
from lbdist.storage import Damaged, Store
from lbdist.training import checkpoint, loop
from lbdist.training.cell import run_cell
from lbdist.training.loop import train
from lbdist.tuning.book import Book, write_cell
from tests.support.cells import make_cell
from tests.support.commands import serially, values
from tests.support.samples import signals


def cut(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


def flip(file: Path) -> None:
    """Thirty single bits, spread over the file: some of them where nothing is kept."""
    content = bytearray(file.read_bytes())
    for place in range(30):
        content[len(content) * place // 30] ^= 0x10
    file.write_bytes(content)


def empty(file: Path) -> None:
    file.write_bytes(b"")


def as_folder(file: Path) -> None:
    file.unlink(missing_ok=True)
    file.mkdir()
    (file / "inner").write_text("x")


def other_schema(file: Path) -> None:
    pq.write_table(pa.table({"metric": ["accuracy"], "value": [99.0]}), file)


def as_file(file: Path) -> None:
    shutil.rmtree(file)
    file.write_text("x")


def test_whatever_is_damaged_is_computed_again_to_the_same_table(
    alone: tuple[Path, str], copied: Path, cache: str
) -> None:
    """Every kind of file of a storage in every kind of damage, at once, in a copy of a finished study."""
    original, storage = alone[0], copied
    rows = results.load(original / "remedies")
    checks = set(rows.query("role in ('workers', 'precision')")["cell"])
    cells = [cell for cell in rows["cell"].unique() if cell not in checks]
    measured = rows.query("metric == 'sharpness'").groupby("cell")["measurement"].unique()
    bare = [cell for cell in cells if cell not in measured.index]
    full = [cell for cell in cells if cell in measured.index]
    aside: list[Path] = []
    gone: list[Path] = []

    def harm(file: Path, do: Callable[[Path], None]) -> None:
        do(file)
        aside.append(file)

    kinds = (cut, flip, empty, as_folder, other_schema)
    for cell, do in zip(bare, kinds, strict=False):
        harm(storage / results.cell_file(cell), do)
    assert len(bare) >= len(kinds)
    shutil.copy(storage / results.cell_file(full[1]), storage / results.cell_file(full[0]))  # another cell's
    aside.append(storage / results.cell_file(full[0]))
    harm(storage / f"cells/{full[1]}/cell.json", flip)
    (storage / f"cells/{full[2]}/cell.json").unlink()
    gone.append(storage / f"cells/{full[2]}/cell.json")
    for cell in full[3:6]:  # its model is needed again
        for measurement in measured[cell]:
            (storage / results.measurement_file(measurement)).unlink()
    harm(storage / f"cells/{full[3]}/model.safetensors", flip)
    shutil.copy(
        storage / f"cells/{full[6]}/model.safetensors", storage / f"cells/{full[4]}/model.safetensors"
    )
    aside.append(storage / f"cells/{full[4]}/model.safetensors")
    (storage / f"cells/{full[5]}/model.safetensors").unlink()
    gone.append(storage / f"cells/{full[5]}/model.safetensors")
    (storage / results.cell_file(full[6])).unlink()  # was at work
    (storage / f"cells/{full[6]}/{checkpoint.RESUME}").write_bytes(b"\0" * 1000)
    aside.append(storage / f"cells/{full[6]}/{checkpoint.RESUME}")
    for measurement, do in zip(measured[full[0]], (cut, as_folder), strict=False):
        harm(storage / results.measurement_file(measurement), do)
    for measurement, do in zip(measured[full[1]], (flip, empty), strict=False):
        harm(storage / results.measurement_file(measurement), do)
    study = storage / "remedies"
    for name, do in (("report.html", as_folder), ("figures", as_file), ("tables", as_file)):
        harm(study / name, do)
    harm(study / "rows.parquet", as_folder)

    out = serially(storage, "experiment=remedies", cache)
    assert "Traceback" not in out
    lines = [line for line in out.splitlines() if line.startswith("lbdist: ")]
    for file in aside:
        name = str(file.relative_to(storage))
        found = [line for line in lines if name in line]
        assert len(found) == 1, (name, out)
        line = found[0]
        assert line.startswith("lbdist: ") and "set aside as" in line
        assert file.with_name(f"{file.name}.damaged-1").exists()
        assert file.exists() == (file.name != checkpoint.RESUME)  # which is not kept
    for file in gone:
        (line,) = [line for line in lines if str(file.relative_to(storage)) in line]
        assert "is missing; " in line and "is to be trained again" in line
        assert file.exists()
    assert len(lines) == len(aside) + len(gone)
    before, after = values(original / "remedies"), values(study)
    assert before.index.equals(after.index)
    torch.testing.assert_close(torch.tensor(after.values), torch.tensor(before.values), equal_nan=True)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cell's folder with one file of each kind, and `sound` with their copies beside the storage."""
    folder = tmp_path_factory.mktemp("files")
    cell, store = make_cell(epochs=2), Store(folder)
    write_cell(store, cell)
    run_cell(cell, signals(), store)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "SHARE", math.inf)
        train(cell, signals(), store=store)  # leaves its resume file
    own: Path = folder / "cells" / cell.id
    shutil.copytree(own, folder / "sound")
    return own


PLACES = st.floats(0, 1, exclude_max=True)


@given(
    name=st.sampled_from(["cell.json", "model.safetensors", checkpoint.RESUME, "rows.parquet"]),
    cut_at=st.none() | PLACES,
    flips=st.lists(st.tuples(PLACES, st.integers(0, 7)), min_size=1, max_size=3),
)
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_damage_is_read_as_if_it_were_sound(
    written: Path, name: str, cut_at: float | None, flips: list[tuple[float, int]]
) -> None:
    """Cut or flipped anywhere, a file is refused or holds what it held."""
    own, kept = written, written.parents[1] / "sound"
    whole = (kept / name).read_bytes()
    content = bytearray(whole)
    if cut_at is not None:
        content = content[: int(cut_at * len(content))]
    else:
        for place, bit in flips:
            content[int(place * len(content))] ^= 1 << bit
    root, cell, store = own.parents[1], own.name, Store(own)
    read: dict[str, Callable[[], object]] = {
        "rows.parquet": lambda: results.read_rows(root, results.cell_file(cell)),
        "cell.json": lambda: results.read_cell(root, cell),
        "model.safetensors": lambda: sorted(checkpoint.load_model(store, "model.safetensors").items()),
        checkpoint.RESUME: lambda: checkpoint.load(store)["learner"]["x"],
    }
    assert set(read) == {file.name for file in kept.iterdir()}
    sound = read[name]()
    (own / name).write_bytes(content)
    try:
        found = read[name]()
    except Damaged as error:
        assert "\n" not in str(error) and name in str(error)
    else:
        assert repr(found) == repr(sound)
    finally:
        (own / name).write_bytes(whole)


@pytest.mark.usefixtures("every_epoch")
def test_a_resume_file_that_does_not_fit_is_as_good_as_none(tmp_path: Path) -> None:
    """Of another cell, of other code, of another shape: the cell starts anew and ends the same."""
    cell, data, store = make_cell(epochs=3), signals(), Store(tmp_path)
    _, expected = train(cell, data)
    own = store / f"cells/{cell.id}"
    other = make_cell(epochs=2, seed=5)
    train(other, data, store=store)
    own.write(checkpoint.RESUME, (store / f"cells/{other.id}").read(checkpoint.RESUME))
    with pytest.raises(Damaged, match=f"is the file of cells/{other.id}/resume.pt, not of cells/{cell.id}"):
        checkpoint.load(own)
    assert torch.equal(train(cell, data, store=store)[1], expected)
    state = checkpoint.load(own)
    for change in (
        {"learner": {**state["learner"], "x": torch.zeros(3)}},
        {"learner": {}},
        {"learner": None},
        {"learner": {**state["learner"], "buffers": {"none": torch.zeros(1)}}},
        {"learner": {**state["learner"], "optimizer": {"state": {}, "param_groups": []}}},
    ):
        checkpoint.save(own, {**state, "epoch": 2, **change})
        assert torch.equal(train(cell, data, store=store)[1], expected)


def test_a_dry_run_sets_nothing_aside(tmp_path: Path) -> None:
    cell, store = make_cell(epochs=1), Store(tmp_path)
    write_cell(store, cell)
    run_cell(cell, signals(), store)
    flip(tmp_path / results.cell_file(cell.id))
    before = store.names()
    assert Book(store)(cell) is None and store.names() == before
    said: list[str] = []
    assert Book(store, said.append)(cell) is None and len(said) == 1
    assert store.names() != before and Book(store, said.append)(cell) is None and len(said) == 1


def test_damaged_rows_are_one_line_to_who_analyses(tmp_path: Path) -> None:
    cell, store = make_cell(epochs=1), Store(tmp_path)
    write_cell(store, cell)
    run_cell(cell, signals(), store)
    flip(tmp_path / results.cell_file(cell.id))
    with pytest.raises(Damaged, match=r"rows\.parquet"):
        results.load(tmp_path)
