"""Tune's results are read without unpickling anything."""

from __future__ import annotations

import json
import math
import os
import pickle
from pathlib import Path
from typing import Any

import pytest

from lbdist.tuning.trial import grid


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch unpickled",)


def folder(tmp_path: Path) -> Path:
    for name, reports in {
        "a": [{"epoch": 1, "test_accuracy": math.nan}, {"test_accuracy": 70.0, "config": {"rho": 0.2}}],
        "b": [{"test_accuracy": 75.0, "config": {"rho": 0.5}}],
        "c": [{"error": "ValueError: no", "config": {"rho": 1.0}}],
        "d": [],
    }.items():
        place = tmp_path / "tune" / name
        place.mkdir(parents=True)
        (place / "result.json").write_text("".join(json.dumps(report) + "\n" for report in reports))
        (place / "params.pkl").write_bytes(pickle.dumps(Evil()))
    for name in ("tuner.pkl", "trainable.pkl", "experiment_state-2026.json"):
        (tmp_path / "tune" / name).write_bytes(pickle.dumps(Evil()))
    return tmp_path


def test_a_foreign_folder_is_read_and_nothing_in_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = grid(folder(tmp_path))
    assert not (tmp_path / "unpickled").exists()
    assert len(found) == 4 and found.errors == ["ValueError: no"]
    best = found.get_best_result("test_accuracy", "max")
    assert (best.config, best.metrics["test_accuracy"]) == ({"rho": 0.5}, 75.0)
    assert found.get_best_result("test_accuracy", "min").config == {"rho": 0.2}
    frame = found.get_dataframe()
    assert sorted(frame["config/rho"].dropna()) == [0.2, 0.5, 1.0] and len(frame) == 4
    with pytest.raises(ValueError, match="no trial has the metric nothing"):
        found.get_best_result("nothing", "max")
    with pytest.raises(FileNotFoundError, match="no trials under"):
        grid(tmp_path / "elsewhere")
