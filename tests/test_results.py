"""Rows: written whole or not at all, read back as they were, each once however many studies share it."""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, get_args

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from lbdist import results
from lbdist import rows as rows_module
from lbdist.analysis.runs import EQUAL_LOSS, Runs
from lbdist.analysis.sections import landscape
from lbdist.plan import Role
from lbdist.storage import Damaged, Store, stamp

CELLS = {name: {"cell": name, "method": "LB", "remedy": "none", "role": "confirm", "seed": 1} for name in
         ("a1", "b2", "c3", "d4")}  # fmt: skip


def rows_of(cell: str, count: int = 3) -> list[dict[str, Any]]:
    fixed = {"cell": cell, "num_workers": 2, "metric": "accuracy", "split": "test"}
    return [{**fixed, "epoch": epoch, "value": 0.1 * epoch + int(cell[1])} for epoch in range(count)]


def write(folder: Path, cells: dict[str, dict[str, Any]] = CELLS) -> None:
    for cell, columns in cells.items():
        results.write_rows(folder, results.cell_file(cell), rows_of(cell))
        content = {"cell": {}, "columns": columns, "provenance": results.provenance()}
        results.write_cell(folder, cell, content)
        row = {"cell": cell, "measurement": f"e{cell}", "metric": "sharpness", "value": 5.0}
        results.write_rows(folder, results.measurement_file(f"e{cell}"), [row])


def test_schema_holds_the_agreed_columns_first() -> None:
    agreed = ["experiment", "cell", "network", "data", "method", "remedy", "setting", "global_batch_size"]
    agreed += [
        "num_workers",
        "seed",
        "role",
        "epoch",
        "step",
        "metric",
        "value",
        "split",
        "measure",
        "epsilon",
    ]
    agreed += ["space", "solver", "draw", "converged", "evaluations", "position", "position_2", "other_cell"]
    agreed += ["origin_cell", "origin_epoch", "options"]
    assert results.SCHEMA.names[: len(agreed)] == agreed
    assert len(set(results.SCHEMA.names)) == len(results.SCHEMA.names)


def test_round_trip(tmp_path: Path) -> None:
    made = {pa.string(): "text", pa.int64(): 2**40, pa.float64(): 0.1 + 0.2, pa.bool_(): True}
    full = {field.name: made[field.type] for field in results.SCHEMA} | {"point": "{}"}
    results.write_rows(tmp_path, "rows.parquet", [full, {"metric": "loss", "value": float("inf")}])
    frame = results.load(tmp_path)
    assert list(frame.columns) == results.SCHEMA.names
    assert len(frame) == 2
    first, second = results.read_rows(tmp_path, "rows.parquet")
    assert first == full
    assert second["value"] == float("inf") and second["epoch"] is None and second["converged"] is None
    assert pq.read_schema(tmp_path / "rows.parquet").equals(results.SCHEMA)
    # whole columns keep their types
    results.write_rows(tmp_path, "rows.parquet", [full, full])
    kinds = results.load(tmp_path).dtypes
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
        results.write_rows(name, "x/y.parquet", rows)
        empty = dict.fromkeys(results.SCHEMA.names)
        assert results.read_rows(name, "x/y.parquet") == [{**empty, **row} for row in rows]


def test_what_a_cell_says_goes_before_what_its_rows_say(tmp_path: Path) -> None:
    """Where it says nothing the rows' own word stands; where it says that there is none there is none."""
    write(tmp_path)
    columns = {"a1": {"cell": "a1", "split": None, "setting": "x"}, "b2": {"cell": "b2", "num_workers": 7}}
    frame = results.gather(tmp_path, columns, {"ea1": "", "ec3": "sharper"}, "mine")
    expected = []
    for cell in ("a1", "b2"):
        expected += [{**row, **columns[cell]} for row in rows_of(cell)]
    measured = {"metric": "sharpness", "value": 5.0}
    expected.append({**measured, "measurement": "ea1", "num_workers": 2, **columns["a1"]})
    expected.append({**measured, "cell": "c3", "measurement": "ec3", "measure": "sharper"})
    made = results.as_table({**row, "experiment": "mine"} for row in expected).to_pandas()
    order = ["cell", "measurement", "epoch"]
    pd.testing.assert_frame_equal(
        frame.sort_values(order, ignore_index=True), made.sort_values(order, ignore_index=True)
    )


@hypothesis_settings(deadline=None)
@given(
    values=st.lists(st.none() | st.floats(), min_size=1, max_size=4),
    words=st.lists(st.none() | st.text(max_size=3), min_size=5, max_size=5),
    cut=st.integers(0, 5),
    change=st.integers(0, 3),
)
def test_the_digest_of_a_table_is_of_what_it_holds(
    values: list[float | None], words: list[str | None], cut: int, change: int
) -> None:
    names = ["value", "error"]
    kinds = pa.schema([results.SCHEMA.field(name) for name in names])

    def table(values: list[float | None], words: list[str | None]) -> pa.Table:
        columns = [list(values), words[: len(values)]]
        return pa.Table.from_pydict(dict(zip(names, columns, strict=True)), schema=kinds)

    digest, whole = rows_module._digest_of_columns, table(values, words)
    pieces = pa.concat_tables([whole.slice(0, cut), whole.slice(cut)])
    assert digest(pieces) == digest(whole)
    place = change % len(values)
    others = [values[:place] + [new] + values[place + 1 :] for new in (None, 0.0, -0.0, 5e-324)]
    changed = [table(other, words) for other in others if repr(other) != repr(values)]
    for new in (None, "", "\0"):
        other = words[:place] + [new] + words[place + 1 :]
        changed += [table(values, other)] if other != words else []
    changed += [whole.rename_columns(["value", "code"]), table([*values, None], words)]
    assert digest(whole) not in map(digest, changed)


def test_a_study_of_an_earlier_version_was_stamped_row_by_row(tmp_path: Path) -> None:
    rows, name = rows_of("a1"), "rows.parquet"
    for told, sound in ((rows, True), (rows[:2], False)):
        table = results.as_table(told)
        mark = json.dumps(stamp(name, rows_module._digest(results.as_table(rows).to_pylist())))
        Store(tmp_path).write(name, rows_module.parquet(table.replace_schema_metadata({"lbdist": mark})))
        if sound:
            assert results.read_rows(tmp_path, name) == table.to_pylist()
        else:
            with pytest.raises(Damaged, match="is not as it was written"):
                results.read_rows(tmp_path, name)


def test_unknown_column(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\['acuracy'\]"):
        results.write_rows(tmp_path, "x", [{"metric": "x", "value": 1.0}, {"acuracy": 3.0}])
    assert list(tmp_path.iterdir()) == []


def test_wrong_type_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises((pa.ArrowInvalid, pa.ArrowTypeError)):
        results.write_rows(tmp_path, "x", [{"metric": "x", "value": "much"}])
    assert list(tmp_path.iterdir()) == []


def test_second_write_replaces_the_first(tmp_path: Path) -> None:
    write(tmp_path)
    results.write_rows(tmp_path, results.cell_file("b2"), rows_of("b2", 2))
    assert len(results.read_rows(tmp_path, results.cell_file("b2"))) == 2
    assert len(results.load(tmp_path)) == 3 * 3 + 2 + 4


def test_a_study_gathers_its_cells_and_names_them_its_own_way(tmp_path: Path) -> None:
    write(tmp_path)
    columns = {name: {**CELLS[name], "method": "batch 64"} for name in ("a1", "b2")}
    frame = results.gather(
        tmp_path, {**columns, "f5": CELLS["a1"]}, {"ea1": "", "eb2": "sharper", "missing": ""}, "sweep"
    )
    assert set(frame["cell"]) == {"a1", "b2"} and set(frame["method"]) == {"batch 64"}
    assert set(frame["experiment"]) == {"sweep"} and len(frame) == 8
    assert set(frame["num_workers"]) == {2}  # also of the measurements, which know their cell alone
    pd.testing.assert_frame_equal(results.load(tmp_path / "sweep"), frame)
    # the storage folder has each row once, whoever asked for it
    results.gather(tmp_path, CELLS, {}, "other")
    whole = results.load(tmp_path)
    assert len(whole) == 16 and set(whole["method"]) == {"LB"} and whole["experiment"].isna().all()


def test_finished(tmp_path: Path) -> None:
    assert results.finished(tmp_path, results.CELLS) == []
    write(tmp_path)
    (tmp_path / "cells" / "e5").mkdir()  # begun
    (tmp_path / "cells" / "e5" / "cell.json").write_text("{}")
    (tmp_path / "cells" / "e5" / ".rows.parquet.0123abcd").write_bytes(b"PAR1")
    (tmp_path / "measurements" / ".e5.parquet.0123abcd").write_bytes(b"")
    assert sorted(results.finished(tmp_path, results.CELLS)) == sorted(CELLS)
    assert sorted(results.finished(tmp_path, results.MEASUREMENTS)) == [f"e{cell}" for cell in CELLS]


def test_order_of_rows_is_fixed(tmp_path: Path) -> None:
    write(tmp_path / "one")
    write(tmp_path / "two", dict(reversed(CELLS.items())))
    frames = [results.gather(tmp_path / name, CELLS, {f"e{c}": "" for c in CELLS}) for name in ("one", "two")]
    pd.testing.assert_frame_equal(*frames)
    pd.testing.assert_frame_equal(results.load(tmp_path / "one"), results.load(tmp_path / "two"))


def test_names_of_folders_do_not_become_columns(tmp_path: Path) -> None:
    folder = tmp_path / "seed=7,lr=0.1" / "value=3"  # as sweeps name them
    write(folder)
    assert set(results.load(folder)["seed"]) == {1}


def test_nothing_to_load(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(FileNotFoundError, match="no rows under") as caught:
            results.load(folder)
        assert str(folder) in str(caught.value)


def test_the_code_version_in_words() -> None:
    assert results.code_version({"lbdist": "0.1.0", "commit": "1a2b"}) == "lbdist 0.1.0, commit 1a2b"
    assert results.code_version(json.loads('{"lbdist": "0.1.0"}')) == "lbdist 0.1.0"


def test_a_repository_that_only_contains_the_environment_is_no_version(tmp_path: Path) -> None:
    package = tmp_path / "site-packages" / "lbdist"
    package.mkdir(parents=True)
    for module in (
        "__init__",
        "results",
        "compacted",
        "rows",
        "old_rows",
        "storage",
        "errors",
        "code",
        "processes",
    ):
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
    clean = told()[1]
    subprocess.run([*git, "commit", "-qm", "y"], check=True)
    (package / "errors.py").write_text((package / "errors.py").read_text() + "# one\n")
    one = told()[1:]
    (package / "errors.py").write_text((package / "errors.py").read_text() + "# two\n")
    assert clean != "None" and one[0].endswith("-dirty") and told()[1:] != one  # no two are alike


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


EVIDENCE = [
    file
    for file in sorted((Path(__file__).parents[1] / "experiments" / "evidence").glob("*/rows.parquet"))
    if "stage" in pq.read_schema(file).names
]


@pytest.mark.parametrize("file", EVIDENCE, ids=lambda file: file.parent.name)
def test_rows_of_an_earlier_version_have_todays_columns(file: Path) -> None:
    """Those that are shipped were written when a `stage` was all that a cell said of its part."""
    assert len(EVIDENCE) == 9
    rows = results.load(file.parent)
    assert list(rows.columns) == results.SCHEMA.names
    cells = rows[rows["cell"].notna() & rows["method"].notna()]
    assert set(cells["role"]) <= {*get_args(Role)} and cells["method"].str.fullmatch(r"SB|LB|batch \d+").all()
    assert set(rows[rows["cell"].isna()]["role"]) <= {"model"}
    assert rows.loc[rows["metric"] == "block_seconds", "block"].notna().all()
    assert rows.loc[rows["metric"] == "collective_seconds", "bytes"].notna().all()
    assert not set(rows["metric"].dropna()) & {"images_per_second", "train_loss", "test_accuracy"}
    runs = Runs(rows)
    assert {"SB", "LB"} <= set(runs.counted["label"])
    if file.parent.name == "mnist1d":
        assert EQUAL_LOSS in set(runs.counted["label"]) and not landscape.slices(runs).empty
        workers = cells.groupby("role")["num_workers"].unique()
        assert set(workers["workers"]) == {2} and set(workers["precision"]) == {1}


def test_a_cell_of_an_earlier_version_loads_with_its_role(tmp_path: Path) -> None:
    """Its folder says what it is in the words of its time."""
    rows = [{"cell": "a1", "metric": "loss", "value": 1.0, "split": "test", "num_workers": 2}]
    results.write_rows(tmp_path, results.cell_file("a1"), rows)
    columns = {"cell": "a1", "method": "LB, sqrt", "stage": "check", "remedy": "none", "origin_epoch": 3}
    results.write_cell(tmp_path, "a1", {"cell": {}, "columns": columns, "provenance": {}})
    (row,) = results.load(tmp_path).to_dict("records")
    assert (row["method"], row["role"], row["rule"]) == ("LB", "branch", "sqrt")
