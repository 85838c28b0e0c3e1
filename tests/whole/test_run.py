"""The real command through Ray, from end to end: run, rerun, interrupted, killed."""

import re
import shutil
import signal

import pandas as pd
import pytest
import ray
import torch

from lbdist import compare, export, results
from lbdist.networks.dense import Dense
from lbdist.tuning.trial import grid
from tests.support.commands import (
    agree,
    family,
    finish,
    gone,
    here,
    start,
    table,
    values,
    wait_for,
)
from tests.support.repository import BLOCKS, KEYS, ROOT
from tests.support.samples import signals

MODULES = {"lbdist.export": export.main, "lbdist.compare": compare.main}
"""The commands that look at finished studies."""


def test_a_study_ends_with_rows_a_table_figures_and_a_page(remedies):
    storage, out = remedies
    folder = storage / "remedies"
    rows = results.load(folder)
    assert list(rows.columns) == results.SCHEMA.names
    confirmed = rows.query("role == 'confirm'")
    checked = rows.query("role in ('workers', 'precision')")
    methods = {"none", "augmentation", "conservative", "adversarial", "robust", "growth"}
    assert set(confirmed["remedy"]) == methods and set(confirmed["method"]) == {"SB", "LB"}
    baseline = confirmed.query("method == 'LB' and remedy == 'none'")
    assert set(baseline["num_workers"]) == {1}
    assert set(checked["num_workers"]) == {1, 2} and set(checked["method"]) == {"LB"}  # 2 through Ray Train
    assert set(checked["precision"]) == {"float32"} and checked.query("metric == 'sharpness'").shape[0] == 2
    phi = rows.query("metric == 'sharpness'")
    assert len(phi) == 2 * 8 + 5 * 2 + 2 and phi["error"].isna().all() and (phi["value"] >= 0).all()
    assert set(rows.query("role == 'search'")["split"].dropna()) == {"train", "validation"}
    for text in ("SB", "LB + robust", "on 1 and 2 workers", "num_workers=auto", "report:"):
        assert text in out
    drawn = {f.name for f in (folder / "figures").iterdir()}
    assert drawn >= {"leaderboard.png", "curves.svg", "scatter.png"}
    assert "<html" in (folder / "report.html").read_text()
    assert {f.name for f in (folder / "tables").iterdir()} >= {
        "leaderboard.csv",
        "search.tex",
        "sharpness.md",
    }
    shared = {path.name for path in storage.iterdir()}
    assert shared == {"cells", "measurements", "compacted", "remedies"}
    assert {f.name for f in (storage / "cells" / confirmed["cell"].iloc[0]).iterdir()} == {
        "cell.json", "model.safetensors", "rows.parquet"
    }  # fmt: skip


def test_a_finished_study_is_not_run_again(remedies, cache):
    storage, out = remedies
    before = (storage / "remedies" / "rows.parquet").read_bytes()
    again = here(storage, "experiment=remedies", cache)
    assert table(again) == table(out)
    assert "local Ray" not in again and "[1/" not in again and not ray.is_initialized()
    assert (storage / "remedies" / "rows.parquet").read_bytes() == before


def test_the_rows_are_those_of_the_study_without_ray(remedies, alone):
    found, through_ray = values(alone[0] / "remedies"), values(remedies[0] / "remedies")
    agree(found, through_ray, least=len(found))
    more = through_ray.drop(found.index).index.to_frame(index=False)
    assert len(found) > 300 and set(more["num_workers"]) == {2} and set(more["role"]) == {"workers"}


def test_tunes_own_folder_stays_readable(remedies):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    storage, _ = remedies
    found = grid(storage / "remedies")
    frame = found.get_dataframe()
    assert len(found.errors) == 0
    search = frame["config/role"] == "search"
    assert "accuracy" not in frame.columns
    assert frame["validation_accuracy"].notna().equals(search) and frame["test_accuracy"].notna().equals(
        ~search
    )
    assert set(frame[frame["config/remedy"] == "robust"]["config/rho"]) == {0.2, 0.5}
    assert frame["config/rho"].dtype == "float64"
    best = found.get_best_result("validation_accuracy", "max")
    assert best.config["role"] == "search"
    assert best.metrics["validation_accuracy"] == frame["validation_accuracy"].max()
    phi = results.load(storage / "remedies").query(
        "metric == 'sharpness' and epsilon == 1e-3 and space == 'full' and solver == 'converged'"
    )
    confirmed = frame[frame["config/role"] == "confirm"]
    joined = confirmed.merge(phi[["cell", "value"]], left_on="config/cell", right_on="cell")
    assert len(joined) == len(confirmed) == 7 and joined["value"].notna().all()
    robust = frame[(frame["config/remedy"] == "robust") & (frame["config/role"] == "confirm")]
    cells = results.load(storage / "remedies").query(
        "remedy == 'robust' and role == 'confirm' and metric == 'accuracy'"
    )
    final = cells[cells["epoch"].isna() & (cells["split"] == "test")]
    assert sorted(robust["test_accuracy"]) == sorted(final["value"])
    events = EventAccumulator(found[0].path).Reload()
    assert {"ray/tune/test_accuracy", "ray/tune/validation_accuracy"} & set(events.Tags()["scalars"])


def test_the_paper_runs_to_its_report(tmp_path, cache):
    """All its studies, each shrunk: every claim has a verdict, every figure is there."""
    small = ["seeds=1", "study.batches=[16,64,40,full]", "study.epochs=[1,4]", "remedy=[none,robust]"]
    small += ["remedy.robust.search.rho=[0.2]", "study.check_workers=null", "study.check_precision=null"]
    small += ["measure.choices.subspace_dimension=5", "measure.slice.count=7", "measure.curve.count=7"]
    out = finish(start(tmp_path, "experiment=paper", *small, "measure.plane.count=5", cache))
    assert "LB generalises worse than SB" in out and "not settled" in out
    study = tmp_path / "paper"
    figures = {path.name for path in (study / "figures").glob("*.svg")}
    shown = ["gap-curves", "landscape-slices-lb", "landscape-planes", "batch_size-batch_size"]
    shown += ["warm_start-warm_start", "sharpness_vs_loss-sharpness_vs_loss", "remedies-leaderboard"]
    for name in shown:
        assert f"{name}.svg" in figures
    tables = {path.name for path in (study / "tables").glob("*.csv")}
    assert {"claims.csv", "table2.csv", "table3.csv", "table4.csv", "sharpness-choices.csv"} <= tables
    rows = results.load(study)
    assert rows["error"].isna().all() and "equal_loss" in set(rows["role"])
    again = here(tmp_path, "experiment=gap", *small[:1], cache)  # nothing of it is left to do
    assert "local Ray" not in again and not ray.is_initialized()


@pytest.fixture
def there(remedies, tmp_path, monkeypatch):
    """A folder with the study in `results`, and once more in `other`, where a user types what README says."""
    shutil.copytree(remedies[0], tmp_path / "results")
    (tmp_path / "other").symlink_to(tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_readmes_code_runs_as_written(there, capsys):
    data = signals()
    names = {
        "network": Dense(12, [8], 4),
        "inputs": torch.from_numpy(data.train.inputs),
        "labels": torch.from_numpy(data.train.labels),
    }
    code = [text for kind, text in BLOCKS if kind == "python" and not text.startswith("# my_")]
    assert len(code) == 4
    for text in code:
        exec(compile(text, "README.md", "exec"), names)
    out = capsys.readouterr().out
    assert "SharpnessResult(value=" in out and "LB + robust" in out
    assert set(names["board"].index) > {"SB", "LB"} and (there / "only_robust" / "report.html").exists()
    network = Dense(40, [16, 16], 10)
    network.load_state_dict(names["state"])


def test_readmes_commands_on_finished_studies_run_as_written(there, capsys):
    lines = [line.partition(" #")[0].split() for kind, text in BLOCKS for line in text.splitlines()]
    found = [words for words in lines if words[:1] == ["python"] and words[2] in MODULES]
    assert {words[2] for words in found} == set(MODULES)
    for words in found:
        assert MODULES[words[2]](words[3:]) == 0
    out = capsys.readouterr().out
    assert "runs of results/remedies are in tensorboard" in out and "The same runs in both" in out
    assert list((there / "results" / "remedies" / "tensorboard").iterdir())
    assert (there / "compared" / "report.html").exists()


def test_the_notebook_runs_as_written(there, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    names = {}
    exec(compile((ROOT / "experiments" / "analyse.py").read_text(), "analyse.py", "exec"), names)
    assert len(names["search"]) == 10 and len(names["runs"]) == 7
    drawn = {path.name for path in there.glob("*.png")}
    assert drawn == {"search.png", "sharpness.png", "curves.png"} and names["state"]
    labels = [text.get_text() for text in names["axes"].get_legend().get_texts()]
    assert {"SB", "LB", "LB + robust"} <= set(labels)


def test_what_readme_says_of_folders_is_so(remedies):
    storage, _ = remedies
    trees = (text for _, text in re.findall(r"```(\w*)\n(.*?)```", KEYS, re.DOTALL))
    tree = next(text for text in trees if "cell.json" in text)
    for name in re.findall(r"[\w]+\.(?:json|parquet|safetensors|html|yaml)", tree):
        assert list(storage.rglob(name)), name
    assert storage.name == "results"
    for folder in ("figures", "tables", "tune"):
        assert (storage / "remedies" / folder).is_dir()


@pytest.fixture(scope="session")
def leftovers():
    """Processes of a program that was killed: Ray's end by themselves, which takes up to a minute."""
    members = []
    yield members
    gone(members)


def test_interrupted_and_killed_a_study_ends_with_the_same_numbers(remedies, tmp_path, cache, leftovers):
    arguments = ["experiment=gap", "study.equal_loss=null", cache]
    folder = tmp_path / "gap"

    def done() -> int:
        files = [*tmp_path.glob("cells/*/rows.parquet"), *tmp_path.glob("measurements/[!.]*.parquet")]
        return len(files)

    process = start(tmp_path, *arguments)  # 1: Ctrl-C while cells train
    wait_for(lambda: done() >= 1, process)
    refused = here(tmp_path, *arguments, status=2)  # two runs do not share a folder
    assert "another lbdist is at work" in refused.splitlines()[-1]
    members = family(process)
    assert members
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert re.search(r"To go on: python -m lbdist.run .*experiment=gap", err) and "Traceback" not in out + err

    process = start(tmp_path, *arguments)  # 2: kill -9 while sharpness is measured
    wait_for(lambda: done() >= 3, process)
    leftovers += family(process)
    process.kill()
    process.communicate(timeout=60)
    before = done()
    next(tmp_path.glob("cells/*/rows.parquet")).unlink()  # is trained once more
    shutil.rmtree(folder / "tune")
    (folder / "tune").write_text("a file where Tune's folder was")

    process = start(tmp_path, *arguments)  # 3: to the end
    out = finish(process)
    assert before >= 3 and "study gap" in out and len(grid(folder)) == 2
    undisturbed = values(remedies[0] / "remedies")
    baseline = {level: undisturbed.index.get_level_values(level) for level in ("remedy", "role")}
    undisturbed = undisturbed[(baseline["remedy"] == "none") & (baseline["role"] == "confirm")]
    pd.testing.assert_series_equal(values(folder), undisturbed)
    gone(members)
