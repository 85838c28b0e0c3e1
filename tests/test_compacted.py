"""What is kept together of finished files is what they hold, as long as they are as they were."""

import os
import pickle
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbdist import results
from lbdist.compacted import NAME, Files
from lbdist.results import Row
from lbdist.rows import of_parquet, parquet
from lbdist.storage import Damaged, Store, stamped

CELLS, MEASUREMENTS = ("a1", "b2", "c3"), ("d4", "e5")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Three cells and two measurements, of which nothing is kept yet."""
    for cell in CELLS:
        fixed: Row = {"cell": cell, "num_workers": 1, "metric": "loss"}
        results.write_rows(
            tmp_path, results.cell_file(cell), [{**fixed, "value": 0.5}, {**fixed, "epoch": 1, "value": 0.75}]
        )
        results.write_cell(tmp_path, cell, {"columns": {"cell": cell, "method": "LB"}})
    for name in MEASUREMENTS:
        row = {"cell": "a1", "measurement": name, "measure": "sharpness", "metric": "sharpness", "value": 2.0}
        results.write_rows(tmp_path, results.measurement_file(name), [row])
    return Store(tmp_path)


def names() -> list[str]:
    return results.file_names(CELLS, MEASUREMENTS)


def compact(store: Store, which: list[str] | None = None) -> None:
    Files(store).compact(names() if which is None else which)


def spoil(store: Store, name: str) -> None:
    """Garbles a file behind the back of its size and time."""
    assert store.local is not None
    path = store.local / name
    before = path.stat()
    path.write_bytes(bytes(before.st_size))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("ahead", [False, True])
def test_what_is_kept_is_what_the_files_hold_and_they_are_not_read_again(store: Store, ahead: bool) -> None:
    before, files = results.load(store), Files(store)
    if ahead:
        files.read_ahead(names())
    files.compact(names())
    for name in names():
        spoil(store, name)
    pd.testing.assert_frame_equal(results.load(store), before)
    kept = Files(store)
    assert kept.json(results.cell_json("b2"))["columns"] == {"cell": "b2", "method": "LB"}
    with pytest.raises(Damaged):
        kept.json(results.cell_json("b2"))  # given out once


@given(parts=st.lists(st.sets(st.sampled_from(range(8))), max_size=4))
def test_it_grows_by_what_is_new(parts: list[set[int]], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("store")
    test = Store(folder)
    for cell in CELLS:
        results.write_rows(folder, results.cell_file(cell), [{"cell": cell, "metric": "loss", "value": 1.0}])
        results.write_cell(folder, cell, {"columns": {"cell": cell}})
    for name in MEASUREMENTS:
        results.write_rows(folder, results.measurement_file(name), [{"measurement": name, "value": 2.0}])
    every, known = names(), set[str]()
    before = {n: Files(test).json(n) if n.endswith(".json") else Files(test).rows(n) for n in every}
    for part in parts:
        known |= {every[place] for place in part}
        Files(test).compact([every[place] for place in part])
    for name in every:
        spoil(test, name)
    files = Files(test)
    for name in every:
        read = files.json if name.endswith(".json") else files.rows
        if name in known:
            assert read(name) == before[name]
        else:
            with pytest.raises(Damaged):
                read(name)


def test_a_file_that_was_written_anew_is_read_where_it_lies(store: Store) -> None:
    compact(store)
    row: Row = {"cell": "a1", "num_workers": 2, "metric": "loss", "value": 0.25}
    results.write_rows(store, results.cell_file("a1"), [row])
    assert [found["value"] for found in Files(store).rows(results.cell_file("a1"))] == [0.25]
    compact(store)
    spoil(store, results.cell_file("a1"))
    assert [found["value"] for found in Files(store).rows(results.cell_file("a1"))] == [0.25]


def test_a_file_that_is_gone_is_gone(store: Store) -> None:
    compact(store)
    store.remove(results.cell_folder("b2"))
    assert Files(store).rows(results.cell_file("b2")) == []
    with pytest.raises(FileNotFoundError):
        Files(store).json(results.cell_json("b2"))
    assert set(results.load(store)["cell"]) == {"a1", "c3"}
    store.remove(results.measurement_file("d4"))
    compact(store)
    assert set(results.load(store)["measurement"].dropna()) == {"e5"}


def test_damage_of_a_file_is_noticed(store: Store) -> None:
    compact(store)
    store.write(results.cell_file("c3"), b"0" * 100)
    with pytest.raises(Damaged, match="c3/rows"):
        results.load(store)
    compact(store)  # passes over it
    with pytest.raises(Damaged, match="c3/rows"):
        results.load(store)


@pytest.mark.parametrize("cut", [0, 1, 40, 200, -1])
def test_a_damaged_one_is_as_good_as_none(store: Store, cut: int) -> None:
    before = results.load(store)
    compact(store)
    content = store.read(NAME)
    store.write(NAME, content[:cut])
    pd.testing.assert_frame_equal(results.load(store), before)
    changed = bytearray(content)
    changed[cut] ^= 1
    store.write(NAME, bytes(changed))
    pd.testing.assert_frame_equal(results.load(store), before)
    spoil(store, results.cell_file("a1"))
    with pytest.raises(Damaged):
        results.load(store)


def test_one_of_other_columns_is_as_good_as_none(store: Store) -> None:
    before = results.load(store)
    compact(store)
    table = of_parquet(store.read(NAME).partition(b"\n")[2])
    content = parquet(table.drop_columns(["rule"]))  # as an earlier version would have written it
    store.write(NAME, stamped(NAME, content))
    pd.testing.assert_frame_equal(results.load(store), before)
    spoil(store, results.cell_file("a1"))
    with pytest.raises(Damaged):
        results.load(store)


def test_what_is_pickled_holds_no_rows(store: Store) -> None:
    compact(store)
    files = Files(store)
    files.read_ahead(names())
    content = pickle.dumps(files)
    assert len(content) < 1000 and pickle.loads(content).rows(results.cell_file("a1"))


def test_what_is_dropped_is_read_where_it_lies(store: Store) -> None:
    compact(store)
    files = Files(store)
    results.write_cell(store, "a1", {"columns": {"cell": "a1", "method": "SB"}})
    files.drop(results.cell_json("a1"))
    assert files.json(results.cell_json("a1"))["columns"]["method"] == "SB"
