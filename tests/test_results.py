"""Rows: written whole or not at all, read back as they were, gathered without loss however it ends."""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from lbdist import results

JOBS = ["a1", "b2", "c3", "d4"]


def rows_of(job: str, count: int = 3) -> list[dict[str, Any]]:
    return [
        {
            "experiment": "gap",
            "cell": f"cell-{job}",
            "method": "LB",
            "remedy": "none",
            "stage": "confirm",
            "seed": 1,
            "epoch": epoch,
            "metric": "accuracy",
            "value": 0.1 * epoch + len(job),
            "split": "test",
        }
        for epoch in range(count)
    ]


def write(folder: Path, jobs: list[str] = JOBS) -> None:
    for job in jobs:
        results.write_rows(folder, job, rows_of(job))


def snapshot(folder: Path) -> tuple[pd.DataFrame, set[str], list[Any]]:
    return results.load(folder), results.finished_jobs(folder), [results.job_rows(folder, j) for j in JOBS]


def assert_same(folder: Path, expected: tuple[pd.DataFrame, set[str], list[Any]]) -> None:
    frame, finished, rows = snapshot(folder)
    pd.testing.assert_frame_equal(frame, expected[0])
    assert (finished, rows) == expected[1:]


@contextmanager
def folder_of_rows() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        write(Path(name))
        yield Path(name)


def test_schema_holds_the_agreed_columns_first() -> None:
    agreed = ["experiment", "cell", "network", "data", "method", "remedy", "global_batch_size"]
    agreed += ["num_workers", "seed", "stage", "epoch", "step", "metric", "value", "split", "epsilon"]
    agreed += ["space", "solver", "draw", "converged", "evaluations"]
    assert results.SCHEMA.names[: len(agreed)] == agreed
    assert len(set(results.SCHEMA.names)) == len(results.SCHEMA.names)


def test_round_trip(tmp_path: Path) -> None:
    made = {pa.string(): "text", pa.int64(): 2**40, pa.float64(): 0.1 + 0.2, pa.bool_(): True}
    full = {field.name: made[field.type] for field in results.SCHEMA if field.name != "job"}
    results.write_rows(tmp_path, "job", [full, {"metric": "loss", "value": float("inf")}])
    frame = results.load(tmp_path)
    assert list(frame.columns) == results.SCHEMA.names
    assert len(frame) == 2
    first, second = results.job_rows(tmp_path, "job")
    assert first == {**full, "job": "job"}
    assert second["value"] == float("inf") and second["epoch"] is None and second["converged"] is None
    stored = pq.read_schema(tmp_path / "rows" / "job.parquet")
    assert stored.equals(results.SCHEMA)
    # whole columns keep their types
    results.write_rows(tmp_path / "whole", "job", [full, full])
    kinds = results.load(tmp_path / "whole").dtypes
    for field in results.SCHEMA:
        kind = kinds[field.name]
        if pa.types.is_integer(field.type):
            assert kind == "int64"
        elif pa.types.is_floating(field.type):
            assert kind == "float64"
        elif pa.types.is_boolean(field.type):
            assert kind == "bool"
        else:
            assert pd.api.types.is_string_dtype(kind)


@hypothesis_settings(deadline=None, max_examples=15)
@given(
    st.lists(
        st.fixed_dictionaries(
            {"metric": st.text(max_size=8), "value": st.floats(allow_nan=False)},
            optional={
                "seed": st.integers(-(2**63), 2**63 - 1),
                "converged": st.booleans(),
                "epsilon": st.floats(allow_nan=False),
                "error": st.text(max_size=20),
            },
        ),
        min_size=1,
        max_size=6,
    )
)
def test_any_row_comes_back(rows: list[dict[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        results.write_rows(name, "job", rows)
        for _ in range(2):
            found = results.job_rows(name, "job")
            empty = dict.fromkeys(results.SCHEMA.names)
            assert found == [{**empty, "job": "job", **row} for row in rows]
            results.compact(name)


def test_unknown_column(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\['acuracy'\]"):
        results.write_rows(tmp_path, "job", [{"metric": "x", "value": 1.0}, {"acuracy": 3.0}])
    assert list(tmp_path.iterdir()) == []


def test_wrong_type_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises((pa.ArrowInvalid, pa.ArrowTypeError)):
        results.write_rows(tmp_path, "job", [{"metric": "x", "value": "much"}])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("compacted", [False, True])
def test_second_write_replaces_the_first(compacted: bool, tmp_path: Path) -> None:
    write(tmp_path)
    if compacted:
        results.compact(tmp_path)
    results.write_rows(tmp_path, "b2", [{**row, "value": -1.0} for row in rows_of("b2", 2)])
    for _ in range(2):
        frame = results.load(tmp_path)
        assert list(frame[frame["job"] == "b2"]["value"]) == [-1.0, -1.0]
        assert len(frame) == 3 * 3 + 2
        assert [row["value"] for row in results.job_rows(tmp_path, "b2")] == [-1.0, -1.0]
        results.compact(tmp_path)


def test_compaction(tmp_path: Path) -> None:
    write(tmp_path)
    before = snapshot(tmp_path)
    assert before[1] == set(JOBS) and len(before[0]) == 12
    for _ in range(2):  # the second has nothing to do
        results.compact(tmp_path)
        assert_same(tmp_path, before)
        assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["rows.parquet"]
    # a study that goes on, and is gathered again
    write(tmp_path, ["e5"])
    assert results.finished_jobs(tmp_path) == {*JOBS, "e5"}
    assert len(results.load(tmp_path)) == 15
    results.compact(tmp_path)
    assert results.finished_jobs(tmp_path) == {*JOBS, "e5"}
    assert len(results.load(tmp_path)) == 15


def test_compaction_of_nothing(tmp_path: Path) -> None:
    results.compact(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert results.finished_jobs(tmp_path) == set()
    assert results.job_rows(tmp_path, "a1") == []


@hypothesis_settings(deadline=None, max_examples=25)
@given(
    earlier=st.sets(st.sampled_from(JOBS)),  # gathered by an earlier compaction
    renamed=st.booleans(),  # whether the new file got its name before the end
    left=st.sets(st.sampled_from(JOBS)),  # parts that were not yet deleted
    aside=st.sampled_from([None, 0, 100]),  # bytes of a file that was being written aside
)
def test_compaction_cut_off_at_any_point(
    earlier: set[str], renamed: bool, left: set[str], aside: int | None
) -> None:
    with folder_of_rows() as folder:
        before = snapshot(folder)
        parts = {job: (folder / "rows" / f"{job}.parquet").read_bytes() for job in JOBS}
        if earlier:
            for job in set(JOBS) - earlier:
                (folder / "rows" / f"{job}.parquet").unlink()
            results.compact(folder)
            for job in set(JOBS) - earlier:
                (folder / "rows" / f"{job}.parquet").write_bytes(parts[job])
            assert_same(folder, before)
        if renamed:
            results.compact(folder)
            for job in left - earlier:  # deleted in any order
                (folder / "rows" / f"{job}.parquet").write_bytes(parts[job])
        if aside is not None:
            (folder / ".rows.parquet.0123abcd").write_bytes(b"PAR1" * 100 if aside else b"")
            (folder / "rows").mkdir(exist_ok=True)
            (folder / "rows" / ".e5.parquet.0123abcd").write_bytes(b"PAR1"[:aside])
        assert_same(folder, before)
        results.compact(folder)
        assert_same(folder, before)


def test_killed_while_compacting(tmp_path: Path) -> None:
    # the real thing: the process dies in the middle, time after time
    write(tmp_path)
    before = snapshot(tmp_path)
    program = """
import os, sys
from pathlib import Path
from lbdist import results
calls = int(sys.argv[2])
def dies(name, arguments):
    global calls
    if name in ("os.rename", "os.remove") and sys.argv[1] in str(arguments[0]):
        calls -= 1
        if calls < 0:
            os._exit(9)
sys.addaudithook(dies)
results.compact(sys.argv[1])
"""
    codes = []
    for calls in (0, 1, 3, 99):  # before the rename, after it, amid the deletions, not at all
        folder = tmp_path / f"cut-{calls}"
        shutil.copytree(tmp_path / "rows", folder / "rows")
        done = subprocess.run([sys.executable, "-c", program, str(folder), str(calls)], timeout=60)
        codes.append(done.returncode)
        assert_same(folder, before)
        results.compact(folder)
        assert_same(folder, before)
    assert codes == [9, 9, 9, 0]


def test_load_several_studies(tmp_path: Path) -> None:
    write(tmp_path / "gap", JOBS[:2])
    write(tmp_path / "elsewhere" / "remedies", JOBS[2:])
    results.compact(tmp_path / "gap")
    # what else lies in a study's folder
    (tmp_path / "gap" / "tune" / "rows.txt").parent.mkdir()
    (tmp_path / "gap" / "tune" / "rows.txt").write_text("no rows")
    frame = results.load(str(tmp_path))
    assert sorted(frame["job"].unique()) == JOBS and len(frame) == 12
    assert len(results.load(tmp_path / "gap")) == 6


def test_order_of_rows_is_fixed(tmp_path: Path) -> None:
    write(tmp_path / "one", JOBS)
    write(tmp_path / "two", JOBS[::-1])
    results.compact(tmp_path / "two")
    pd.testing.assert_frame_equal(results.load(tmp_path / "one"), results.load(tmp_path / "two"))


def test_names_of_folders_do_not_become_columns(tmp_path: Path) -> None:
    folder = tmp_path / "seed=7,lr=0.1" / "value=3"  # as sweeps name them
    write(folder)
    for _ in range(2):
        assert set(results.load(folder)["seed"]) == {1}
        assert [row["seed"] for row in results.job_rows(folder, "a1")] == [1, 1, 1]
        results.compact(folder)


def test_nothing_to_load(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(FileNotFoundError, match="no rows under") as caught:
            results.load(folder)
        assert str(folder) in str(caught.value)


def test_a_repository_that_only_contains_the_environment_is_no_version(tmp_path: Path) -> None:
    package = tmp_path / "site-packages" / "lbdist"
    package.mkdir(parents=True)
    for module in ("__init__", "results", "storage", "errors"):
        shutil.copy(Path(results.__file__).parent / f"{module}.py", package)
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    (tmp_path / "file").write_text("x")
    subprocess.run([*git, "add", "file"], check=True)
    subprocess.run([*git, "commit", "-qm", "x"], check=True)
    program = "import lbdist.results as r; print(r.__file__, r.provenance().get('commit'))"

    def told() -> list[str]:
        options = {"cwd": package.parent, "capture_output": True, "text": True, "timeout": 60}
        return subprocess.run([sys.executable, "-c", program], **options).stdout.split()

    assert Path(told()[0]).parent == package and told()[1] == "None"
    subprocess.run([*git, "add", "site-packages"], check=True)
    assert told()[1] != "None"


def test_provenance() -> None:
    found = results.provenance()
    assert {"lbdist", "torch", "ray", "numpy", "scipy", "python", "machine", "date"} <= set(found)
    assert all(isinstance(value, str) and value for value in found.values())


def test_reading_needs_neither_torch_nor_ray() -> None:
    program = """
import sys, pkgutil, importlib
import lbdist.results, lbdist.analysis
for module in pkgutil.iter_modules(lbdist.analysis.__path__):
    importlib.import_module(f"lbdist.analysis.{module.name}")
print(sorted(name for name in ("torch", "ray", "torchvision") if name in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr
