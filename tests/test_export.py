"""A finished study where a team looks: what was measured is there, under its name."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from lbdist import results
from lbdist.export import TARGETS, main, runs_of


@pytest.fixture
def study(alone: tuple[Path, str]) -> Path:
    return alone[0] / "remedies"


def finals(rows: pd.DataFrame) -> dict[str, float]:
    found = rows.query("metric == 'accuracy' and epoch.isna() and measurement.isna() and split != 'train'")
    return dict(zip(found["cell"], found["value"], strict=True))


def test_each_run_has_what_its_rows_say(study: Path) -> None:
    rows = results.load(study)
    runs = runs_of(rows)
    assert len(runs) == rows["cell"].nunique() and len({run.name for run in runs}) == len(runs)
    known = finals(rows)
    for run in runs:
        own = rows[(rows["cell"] == run.config["cell"]) & rows["measurement"].isna()]
        split = "validation" if run.config["role"] == "search" else "test"
        assert run.final[f"{split}_accuracy"] == known[run.config["cell"]]
        curve = own.query("metric == 'running_loss'").set_index("epoch")["value"].to_dict()
        assert {epoch: metrics["train_running_loss"] for epoch, metrics in run.curves.items()} == curve
    (small,) = (run for run in runs if run.name.startswith("SB"))
    phi = rows.query("method == 'SB' and metric == 'sharpness' and space == 'full' and epsilon == 1e-3")
    for solver, value in zip(phi["solver"], phi["value"], strict=True):
        assert small.final[f"sharpness/full/{solver}/0.001"] == value


def test_tensorboard(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert main([str(study), "to=tensorboard", f"out={tmp_path}"]) == 0
    rows = results.load(study)
    assert f"{rows['cell'].nunique()} runs of " in capsys.readouterr().out
    for run in runs_of(rows):
        found = EventAccumulator(str(tmp_path / run.name)).Reload()
        losses = {event.step: event.value for event in found.Scalars("train_running_loss")}
        known = {epoch: metrics["train_running_loss"] for epoch, metrics in run.curves.items()}
        assert losses == pytest.approx(known)
        for name, value in run.final.items():
            assert found.Scalars(f"final/{name}")[0].value == pytest.approx(value, rel=1e-5)
    shown = EventAccumulator(str(tmp_path / "study remedies")).Reload().Tags()
    assert {"leaderboard", "curves"} <= set(shown["images"])
    assert any("configuration" in name for name in shown["tensors"])


@pytest.mark.parametrize("to", ["mlflow", "wandb", "trackio"])
def test_the_other_tools(to: str, study: Path, tmp_path: Path) -> None:
    """Each as its own client does it, without a server; they are extras."""
    pytest.importorskip(to)
    store = (tmp_path / "mlruns").as_uri()
    quiet = {"MLFLOW_TRACKING_URI": store, "WANDB_MODE": "offline", "TRACKIO_DIR": str(tmp_path / "trackio")}
    quiet |= {"MLFLOW_ALLOW_FILE_STORE": "true"}
    command = [sys.executable, "-m", "lbdist.export", str(study), f"to={to}"]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, **quiet}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert f"runs of {study} are in {to}" in done.stdout
    count = len(runs_of(results.load(study)))
    if to == "mlflow":
        import mlflow

        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
            mlflow.set_tracking_uri(store)
            kept = mlflow.search_runs(experiment_names=["remedies"])
        assert len(kept) == count + 1
        own = kept.set_index("params.cell")["metrics.test_accuracy"].dropna()
        assert own.to_dict() == {k: v for k, v in finals(results.load(study)).items() if k in own.index}
        assert len(own) > 5
    elif to == "wandb":
        assert len(list((tmp_path / "wandb").glob("offline-run-*"))) == count + 1
    else:
        assert (tmp_path / "trackio" / "remedies.db").stat().st_size > 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("STUDY", "to: must be given, one of mlflow"),
        ("STUDY to=excel", "to=excel: must be one of mlflow, wandb, trackio, tensorboard"),
        ("NOWHERE to=tensorboard", "must be the folder of a finished study, as results/remedies"),
        ("to=tensorboard", "nothing: must be 1 folder, and to=, project=, out="),
        ("STUDY --to tensorboard", "--to: must be 1 folder"),
    ],
)
def test_wrong_words(
    words: str, said: str, study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = words.replace("STUDY", str(study)).replace("NOWHERE", str(tmp_path)).split()
    assert main(given) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("lbdist: ") and err.count("\n") == 1 and said in err
    assert list(tmp_path.iterdir()) == []


def test_a_tool_that_is_missing_or_fails_is_one_line(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(TARGETS["wandb"], "module", "no_such_tool")
    assert main([str(study), "to=wandb"]) == 2
    assert "pip install 'lbdist[wandb]'" in capsys.readouterr().err
    assert main([str(study), "to=tensorboard", "out=/dev/null/x"]) == 1
    assert capsys.readouterr().err.startswith("lbdist: to=tensorboard: ")
    assert main(["--help"]) == 0 and "usage: python -m lbdist.export" in capsys.readouterr().out
