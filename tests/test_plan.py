"""Cells and measurements, and the ids by which studies share them."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lbdist.plan import Cell, Measurement, Origin, Point, name_setting

CELL: dict[str, Any] = {
    "network": {"_target_": "lbdist.networks.dense.Dense", "inputs": 40, "widths": [64, 64], "classes": 10},
    "data": {"_target_": "lbdist.data.mnist1d.MNIST1D", "samples": {"train": "1", "test": "2"}},
    "loss": {"_target_": "lbdist.losses.CrossEntropy"},
    "optimizer": {"_target_": "torch.optim.Adam", "lr": 0.001},
    "remedies": ({"_target_": "lbdist.remedies.robust.Robust", "rho": 0.5},),
    "global_batch_size": 400,
    "epochs": 24,
    "seed": 0,
    "num_workers": 2,
    "ghost_batch_size": None,
    "micro_batch_size": None,
    "test_points": 12,
    "validation_fraction": None,
    "origin": None,
    "method": "LB",
    "remedy": "robust",
    "setting": "rho=0.5",
    "role": "confirm",
    "rule": "none",
    "keep": frozenset(),
}

CHANGES: list[dict[str, Any]] = [
    {"network": {**CELL["network"], "widths": [64, 65]}},
    {"data": {"samples": {"train": "3", "test": "2"}}},
    {"data": {"samples": {"train": "1", "test": "4"}}},
    {"loaded": "0"},
    {"loss": {"_target_": "lbdist.losses.MeanSquaredError"}},
    {"optimizer": {**CELL["optimizer"], "lr": 0.0011}},
    {"remedies": ()},
    {"remedies": ({**CELL["remedies"][0], "rho": 0.2},)},
    {"remedies": CELL["remedies"] * 2},
    {"global_batch_size": 401},
    {"epochs": 25},
    {"seed": 1},
    {"num_workers": "auto"},
    {"num_workers": 4},
    {"ghost_batch_size": 32},
    {"micro_batch_size": 32},
    {"test_points": 6},
    {"validation_fraction": 0.2},
    {"precision": "float32"},
    {"precision": "bfloat16"},
    {"schedule": {"warmup": 1, "decay": "cosine"}},
    {"patience": 3},
    {"procedure": {"_target_": "lbdist.training.procedures.Bare", "threads": 2}},
    {"origin": Origin("a" * 12, 3)},
    {"target_loss": 0.1},
    {"origin": Origin("a" * 12, 4)},
    {"origin": Origin("b" * 12, 3)},
]

NAMES: list[dict[str, Any]] = [
    {"method": "SB"},
    {"remedy": "none"},
    {"setting": ""},
    {"role": "branch"},
    {"rule": "sqrt"},
    {"keep": frozenset({1, 2})},
    {"network": {**CELL["network"], "name": "mlp"}},
    {"data": {**CELL["data"], "root": "elsewhere"}},
    {"remedies": ({**CELL["remedies"][0], "name": "robust"},)},
]
"""What people call a cell, and what is kept of it: no part of what it is."""


def test_the_id_holds_what_defines_the_run_and_nothing_else() -> None:
    assert {name for change in CHANGES + NAMES for name in change} == {
        f.name for f in dataclasses.fields(Cell)
    }
    ids = [Cell(**{**CELL, **change}).id for change in [{}, *CHANGES]]
    assert len(set(ids)) == len(ids)
    assert all(len(name) == 12 and set(name) <= set("0123456789abcdef") for name in ids)
    assert {Cell(**{**CELL, **change}).id for change in NAMES} == {ids[0]}


def test_a_run_that_holds_samples_out_does_not_depend_on_the_test_set() -> None:
    ids = [
        Cell(**{**CELL, "validation_fraction": 0.2, "data": {"samples": {"train": train, "test": test}}}).id
        for train, test in (("1", "2"), ("1", "3"), ("2", "2"))
    ]
    assert ids[0] == ids[1] != ids[2]


def test_id_is_that_of_the_content() -> None:
    cell = Cell(**{**CELL, "origin": Origin("a" * 12, 3), "keep": frozenset({4, 2})})
    record = json.loads(json.dumps(cell.record()))  # as cell.json keeps it
    assert Cell.of_record(record) == dataclasses.replace(cell, remedies=tuple(cell.remedies))
    backwards = {
        k: dict(reversed(v.items())) if isinstance(v, dict) else v for k, v in reversed(record.items())
    }
    program = "import json, sys; from lbdist.plan import Cell; print(Cell.of_record(json.load(sys.stdin)).id)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps(backwards),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONHASHSEED": "1"},
        timeout=120,
    )
    assert done.stdout.strip() == cell.id, done.stderr


def test_labels() -> None:
    cell = Cell(**CELL)
    assert cell.label == "LB + robust rho=0.5 seed 0"
    plain = dataclasses.replace(cell, remedy="none", setting="", origin=Origin("a" * 12, 5))
    assert plain.label == "LB from epoch 5 seed 0"
    assert (plain.columns()["origin_cell"], plain.columns()["origin_epoch"]) == ("a" * 12, 5)
    checks = {"workers": 2, "precision": 1}
    names = [
        dataclasses.replace(cell, role=role, num_workers=count, precision="float32").label_without_seed
        for role, count in checks.items()
    ]
    assert names == [
        "LB + robust rho=0.5 on 2 workers in float32",
        "LB + robust rho=0.5 on 1 worker in float32",
    ]
    branch = dataclasses.replace(plain, role="branch", method="batch 64", rule="sqrt")
    assert branch.label_without_seed == "batch 64 from epoch 5 rule sqrt"
    assert dataclasses.replace(plain, role="equal_loss", origin=None).label == "LB to SB's loss seed 0"
    timing = {"_target_": "T", "name": "timing"}
    assert dataclasses.replace(cell, role="timing", procedure=timing).label_without_seed == (
        "timing, batch 400, robust on 2 workers"
    )
    both = dataclasses.replace(cell, remedies=({"_target_": "A", "name": "a", "rho": 1.0}, *cell.remedies))
    assert list(both.hyperparameters()) == ["a.rho", "lbdist.remedies.robust.Robust.rho"]
    assert name_setting({"rho": 0.123456, "norm": "inf"}) == "rho=0.1235 norm=inf"


def test_measurements_are_told_apart_by_what_they_measure_and_where(tmp_path: Path) -> None:
    cell, other = Cell(**CELL), Cell(**{**CELL, "seed": 1})
    node = {"_target_": "a.B", "epsilon": 1e-3, "name": "sharpness"}
    (tmp_path / "a.pt").write_bytes(b"one")
    (tmp_path / "b.pt").write_bytes(b"two")
    points = [(Point(cell),), (Point(cell, 3),), (Point(other),), (Point(cell), Point(other))]
    points += [(Point(cell, file=str(tmp_path / name)),) for name in ("a.pt", "b.pt")]
    found = [Measurement(node, at) for at in points] + [Measurement({**node, "epsilon": 5e-4}, points[0])]
    assert len({m.id for m in found}) == len(found)
    assert Measurement({**node, "name": "else"}, points[0]).id == found[0].id
    (tmp_path / "copy.pt").write_bytes(b"one")
    assert Measurement(node, (Point(cell, file=str(tmp_path / "copy.pt")),)).id == found[4].id
    assert found[3].columns()["other_cell"] == other.id and found[1].columns()["epoch"] == 3
    assert json.loads(found[0].columns()["options"]) == {"epsilon": 1e-3}


@pytest.mark.parametrize("field", ["ghost_batch_size", "origin"])
def test_a_field_that_is_null_is_no_part_of_the_id(field: str) -> None:
    without = {key: value for key, value in CELL.items() if key != field}
    assert Cell(**without).id == Cell(**CELL).id
