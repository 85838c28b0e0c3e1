"""The real command from end to end: every shipped study shrunk, rerun, interrupted and killed."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import ray
from conftest import UNMEASURED, finish, start

from lbdist import results
from lbdist.config.compose import config_root
from lbdist.run import main

# `sharpness` needs a checkpoint: see studies/test_studies_checkpoints.py
STUDIES = sorted({path.stem for path in (config_root() / "experiment").glob("*.yaml")} - {"checkpoints"})
KEY = ["method", "remedy", "seed", "num_workers", "stage", "setting", "metric", "split", "epoch", "step"]
KEY += ["epsilon", "space", "solver", "draw"]
SHARED = Path(__file__).parents[2] / "shared" / "data"


def table(out: str) -> str:
    """What the command prints about its results."""
    return out[out.index("Mean ±") : out.index("report:")]


def values(folder: Path | str) -> pd.Series:
    """Every number of a study that does not depend on the clock."""
    rows = results.load(folder).query("metric not in ('seconds', 'overhead_seconds')")
    return rows.set_index(KEY)["value"].sort_index()


def agree(found: pd.Series, alone: pd.Series, least: int) -> None:
    """At least so many numbers are in both studies, and equal; those that are not are shown."""
    shared = found.index.intersection(alone.index)
    both = pd.DataFrame({"found": found[shared], "alone": alone[shared]})
    differ = both[~np.isclose(both["found"], both["alone"], rtol=0, atol=1e-6, equal_nan=True)]
    assert len(shared) >= least and differ.empty, f"{len(shared)} shared\n{differ.reset_index().to_string()}"


def test_a_study_ends_with_rows_a_table_figures_and_a_page(remedies):
    storage, out = remedies
    folder = storage / "remedies"
    rows = results.load(folder)
    assert list(rows.columns) == results.SCHEMA.names
    confirmed = rows.query("stage == 'confirm'")
    checked = rows.query("stage == 'check'")
    methods = {"none", "augmentation", "conservative", "adversarial", "robust", "growth"}
    assert set(confirmed["remedy"]) == methods and set(confirmed["method"]) == {"SB", "LB"}
    baseline = confirmed.query("method == 'LB' and remedy == 'none'")
    assert set(baseline["num_workers"]) == {1}
    assert set(checked["num_workers"]) == {1, 2} and set(checked["method"]) == {"LB"}  # 2 through Ray Train
    assert set(checked["precision"]) == {"float32"} and checked.query("metric == 'sharpness'").shape[0] == 2
    phi = rows.query("metric == 'sharpness'")
    assert len(phi) == 2 * 8 + 5 * 2 + 2 and phi["error"].isna().all() and (phi["value"] >= 0).all()
    assert set(rows.query("stage == 'search'")["split"].dropna()) == {"train", "validation"}
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
    assert shared == {"cells", "measurements", "remedies"}
    assert {f.name for f in (storage / "cells" / confirmed["cell"].iloc[0]).iterdir()} == {
        "cell.json", "model.safetensors", "rows.parquet"
    }  # fmt: skip


def test_a_finished_study_is_not_run_again(remedies, cache):
    storage, out = remedies
    before = (storage / "remedies" / "rows.parquet").read_bytes()
    again = finish(start(storage, "experiment=remedies", cache))
    assert table(again) == table(out)
    assert "local Ray" not in again and "[1/" not in again
    assert (storage / "remedies" / "rows.parquet").read_bytes() == before


def test_tunes_own_folder_stays_readable(remedies):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from lbdist.tuning import grid

    storage, _ = remedies
    found = grid(storage / "remedies")
    frame = found.get_dataframe()
    assert len(found.errors) == 0
    search = frame["config/stage"] == "search"
    assert "accuracy" not in frame.columns
    assert frame["validation_accuracy"].notna().equals(search) and frame["test_accuracy"].notna().equals(
        ~search
    )
    assert set(frame[frame["config/remedy"] == "robust"]["config/rho"]) == {0.2, 0.5}
    assert frame["config/rho"].dtype == "float64"
    best = found.get_best_result("validation_accuracy", "max")
    assert best.config["stage"] == "search"
    assert best.metrics["validation_accuracy"] == frame["validation_accuracy"].max()
    phi = results.load(storage / "remedies").query(
        "metric == 'sharpness' and epsilon == 1e-3 and space == 'full' and solver == 'converged'"
    )
    confirmed = frame[frame["config/stage"] == "confirm"]
    joined = confirmed.merge(phi[["cell", "value"]], left_on="config/cell", right_on="cell")
    assert len(joined) == len(confirmed) == 7 and joined["value"].notna().all()
    robust = frame[(frame["config/remedy"] == "robust") & (frame["config/stage"] == "confirm")]
    cells = results.load(storage / "remedies").query(
        "remedy == 'robust' and stage == 'confirm' and metric == 'accuracy'"
    )
    final = cells[cells["epoch"].isna() & (cells["split"] == "test")]
    assert sorted(robust["test_accuracy"]) == sorted(final["value"])
    events = EventAccumulator(found[0].path).Reload()
    assert {"ray/tune/test_accuracy", "ray/tune/validation_accuracy"} & set(events.Tags()["scalars"])


def test_studies_of_a_storage_folder_share_cells_and_measurements(remedies, cache):
    """`gap` after `remedies` has nothing to train or measure; a report says which code trained its cells."""
    storage, _ = remedies
    alike = ["experiment=gap", "study.equal_loss=null", cache]
    out = finish(start(storage, *alike))
    assert "local Ray" not in out and "LB" in out
    keys = ["method", "seed", "metric", "split", "epsilon", "space", "solver", "epoch"]
    gap, whole = (results.load(storage / name).query("stage == 'confirm' and remedy == 'none'")
                  for name in ("gap", "remedies"))  # fmt: skip
    pd.testing.assert_series_equal(*(rows.set_index(keys)["value"].sort_index() for rows in (gap, whole)))
    assert len(results.load(storage).query("method == 'SB' and metric == 'steps'")) == 1
    dry = finish(start(storage, *alike, "dry_run=true"))
    assert "2 of the cells are done" in dry
    for path in (storage / "cells").glob("*/cell.json"):
        content = results.read_cell(storage, path.parent.name)
        content["provenance"]["commit"] = "0123abc"
        results.write_cell(storage, path.parent.name, content)
    out = finish(start(storage, *alike))
    assert "2 of 2 cells were trained by other code: lbdist 0.1.0, commit 0123abc (2); today's is" in out
    assert "commit 0123abc" in (storage / "gap" / "report.html").read_text()


def test_studies_of_other_shapes_run_to_their_reports(tmp_path, cache):
    batches = finish(start(tmp_path, "experiment=batch_size", cache, "measure=[sharpness,lambda_max]"))
    assert "Test accuracy is highest at batch" in batches and "lambda max" in batches
    rows = results.load(tmp_path / "batch_size")
    sizes = set(rows["global_batch_size"])
    assert sizes == {2, 3, 6, 13, 26, 40, 102, 400}
    assert set(rows.query("metric == 'lambda_max'")["global_batch_size"]) == sizes
    warm = finish(start(tmp_path, "experiment=warm_start", cache, "small_batch=13"))
    assert "LB at SB's epoch 2" in warm
    rows = results.load(tmp_path / "warm_start")
    begun = rows.query("metric == 'accuracy' and split == 'test' and epoch.isna() and origin_cell.notna()")
    assert sorted(begun["origin_epoch"]) == [1, 2, 4]
    (small,) = rows.query("method == 'SB'")["cell"].unique()
    assert set(begun["origin_cell"]) == {small}
    kept = {path.name for path in (tmp_path / "cells" / small).glob("model*")}
    assert kept == {"model.safetensors", *(f"model-{epoch}.safetensors" for epoch in (1, 2, 4))}
    # LB without a warm start is the one of the sweep, and is not trained again
    assert f"[{len(set(rows['cell'])) - 1}/" in warm and "LB seed 0: test" not in warm
    for name in ("batch_size", "warm_start"):
        drawn(tmp_path / name)


def test_the_paper_runs_to_its_report(tmp_path, cache):
    """All its studies, each shrunk: every claim has a verdict, every figure is there."""
    small = ["seeds=1", "study.batches=[16,64,40,full]", "study.epochs=[1,4]", "remedy=[none,robust]"]
    small += ["remedy.robust.search.rho=[0.2]", "study.check_workers=null", "study.check_precision=null"]
    small += ["measure.choices.subspace_dimension=5", "measure.slice.count=7", "measure.curve.count=7"]
    out = finish(start(tmp_path, "experiment=paper", *small, "measure.plane.count=5", cache))
    assert "LB generalises worse than SB" in out and "not settled" in out
    study = tmp_path / "paper"
    figures = {path.name for path in (study / "figures").glob("*.svg")}
    shown = ["gap-train_test", "landscape-slices-lb", "landscape-planes", "batch_size-batch_size"]
    shown += ["warm_start-warm_start", "sharpness_vs_loss-sharpness_vs_loss", "remedies-leaderboard"]
    for name in shown:
        assert f"{name}.svg" in figures
    tables = {path.name for path in (study / "tables").glob("*.csv")}
    assert {"claims.csv", "table2.csv", "table3.csv", "table4.csv", "sharpness-choices.csv"} <= tables
    rows = results.load(study)
    assert rows["error"].isna().all() and "LB to SB's loss" in set(rows["method"])
    again = finish(start(tmp_path, "experiment=gap", *small[:1], cache))  # nothing of it is left to do
    assert "local Ray" not in again


def drawn(study):
    assert (study / "figures" / f"{study.name}.png").exists()
    assert "<svg" in (study / "report.html").read_text()


def test_a_benchmark_runs_to_its_report(tmp_path, cache):
    own = ["study.workers=[1]", "~study.procedures.DataLoader", "epochs=2"]
    timed = finish(start(tmp_path, "experiment=benchmark", cache, *own, shrunk=UNMEASURED))
    assert "Samples a second at batch 40: lbdist takes " in timed
    drawn(tmp_path / "benchmark")


def test_a_study_of_scaling_runs_to_its_report(tmp_path, cache):
    quick = [f"study.timing.{key}" for key in ("least=2", "seconds=0.1", "block=0.01")]
    quick += [f"study.collectives.{key}" for key in ("repeats=1", "seconds=0.005")]
    quick += ["seeds=2", "measure.noise_scale.group=8", "remedy=[none,growth]", "study.predicted=[64]"]
    quick += ["study.epochs=[1,2]"]
    said = " ".join(finish(start(tmp_path, "experiment=scaling", cache, *quick, shrunk=UNMEASURED)).split())
    for text in ("steps are not timed on 4 and 8 workers", "A training step, timed", "times as fast as SB",
                 "The critical batch along training", "configurations, each left out in turn"):  # fmt: skip
        assert text in said, text
    study = tmp_path / "scaling"
    tables = {path.stem for path in (study / "tables").glob("*.csv")}
    assert tables == {"break_even", "break_even_model", "steps", "remedy_steps", "step_model", "held_out",
                      "predicted", "steps_to_score", "critical_batch", "branches"}  # fmt: skip
    rows = results.load(study)
    fitted = rows[rows["stage"] == "model"].set_index("metric")["value"]
    assert fitted["t"] > 0 and fitted["alpha_low"] <= fitted["alpha"] <= fitted["alpha_high"]
    figures = {path.stem for path in (study / "figures").glob("*.png")}
    assert figures == {
        "time_to_score",
        "throughput",
        "phases",
        "efficiency",
        "steps_to_score",
        "critical_batch",
    }


def test_the_advisor_runs_to_its_recommendation(tmp_path, cache):
    quick = [f"study.timing.{key}" for key in ("least=2", "seconds=0.1", "block=0.01")]
    quick += ["study.workers=[1]", "seeds=2", "measure.noise_scale.group=8", "remedy=[none,augmentation]"]
    quick += ["study.epochs=[2]", "study.rules=[none,sqrt]"]
    said = " ".join(finish(start(tmp_path, "experiment=advise", cache, *quick, shrunk=UNMEASURED)).split())
    assert re.search(r"Take a global batch of [\d,]+ on 1 worker|Stay at batch 32", said)
    assert "The batches to choose from" in said and "Remedies at the recommended batch" in said
    assert "The gradient noise scale is " in said
    rows = results.load(tmp_path / "advise")
    advised = rows[(rows["method"] == "advised") & (rows["metric"] == "accuracy")]
    assert set(advised["split"].dropna()) <= {"train", "validation"}  # nothing is chosen on the test set
    assert set(advised["remedy"]) == {"none", "augmentation"}


def wait_for(condition, process: subprocess.Popen, seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.05)


def family(process: subprocess.Popen) -> list[psutil.Process]:
    """The processes below a command."""
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.Error:
        return []


def cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def gone(members: list[psutil.Process], seconds: float = 90) -> None:
    """Waits for the end of processes: Ray's agents look for their parent every few seconds."""
    _, alive = psutil.wait_procs(members, timeout=seconds)
    assert not alive, [p.cmdline() for p in alive]


def test_an_interrupt_that_a_destructor_swallows_comes_again():
    program = """
import os, signal, time
from lbdist.processes import Interrupts
class Deaf:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.2)
with Interrupts("ended") as interrupts:
    try:
        Deaf()
        print("lost", flush=True)
        time.sleep(20)
    except KeyboardInterrupt:
        print("came", *interrupts.came)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["lost", "came", "15", "15"] and done.returncode == 0


def test_an_interrupt_that_got_through_is_not_sent_again_while_ray_ends():
    """Behind Python's back: Ray's core orders an abort, and puts SIGTERM back to the system's default."""
    program = """
import ctypes, os, signal, time
from lbdist import processes
with processes.Interrupts("ended") as interrupts:
    try:
        signal.alarm(2)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(20)
    except KeyboardInterrupt:
        with processes.closing("ended"):
            ctypes.CDLL(None).signal(int(signal.SIGTERM), None)
            time.sleep(1.5 * processes.AGAIN_SECONDS)
        print(*interrupts.came, flush=True)
        os.kill(os.getpid(), signal.SIGTERM)  # a second one: the handler is back
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout == "15\n" and done.stderr == "lbdist: ended\n" and done.returncode == 143


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

    process = start(tmp_path, *arguments)  # 3: to the end
    out = finish(process)
    assert before >= 3 and "study gap" in out
    undisturbed = values(remedies[0] / "remedies")
    baseline = {level: undisturbed.index.get_level_values(level) for level in ("remedy", "stage")}
    undisturbed = undisturbed[(baseline["remedy"] == "none") & (baseline["stage"] == "confirm")]
    pd.testing.assert_series_equal(values(folder), undisturbed)
    gone(members)


def test_a_study_whose_cells_all_fail_says_so_in_one_line(tmp_path, cache):
    (tmp_path / "failing.py").write_text(
        "import torch\n"
        "class Adam(torch.optim.Adam):\n"
        "    steps = 0\n"
        "    def step(self, closure=None):\n"
        "        self.steps += 1\n"
        "        if self.steps > 1:  # the first is a rehearsal\n"
        "            raise RuntimeError('no step')\n"
        "        return super().step(closure)\n"
    )
    process = start(
        tmp_path, "experiment=gap", "study.equal_loss=null", cache, "optimizer._target_=failing.Adam"
    )
    out, err = process.communicate(timeout=500)
    assert process.returncode == 1, out + err
    assert "Traceback" not in out + err
    assert err.splitlines()[-1] == "lbdist: no cell finished, so there is nothing to report"
    assert "failed: RuntimeError: no step" in out
    for method in ("SB", "LB"):
        assert (
            f"lbdist: failed: {method} seed 0: RuntimeError: no step; run the command again to retry" in err
        )


@pytest.mark.parametrize("study", STUDIES)
def test_every_study_has_a_dry_run(study, tmp_path, cache, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([f"experiment={study}", "dry_run=true", "seeds=2", cache]) == 0
    out, err = capsys.readouterr()
    assert err == "" and f"study {study}" in out and "accumulation" in out
    assert not list(tmp_path.iterdir()) and not ray.is_initialized()


def test_a_dry_run_prints_each_cell_with_its_batches(tmp_path, cache, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = [
        "experiment=gap",
        "study.equal_loss=null",
        "seeds=2",
        "epochs=24",
        "data.train_samples=600",
        "data.test_samples=50",
    ]
    arguments += ["num_workers=2", "ghost_batch_size=8", "micro_batch_size=8", "optimizer.lr=0.02", cache]
    assert main([*arguments, "dry_run=true", "measure.sharpness.spaces=[full]"]) == 0
    out, err = capsys.readouterr()
    # SB and LB over 2 seeds; both solvers and boxes are one measurement at each
    assert out.startswith("study gap: mlp on mnist1d, 4 cells, 4 measurements\nnum_workers=2\n") and err == ""
    heads, *rows = (line.split("  ") for line in out.splitlines()[2:5])
    table = [
        dict(zip([h.strip() for h in heads if h], [c.strip() for c in row if c], strict=True)) for row in rows
    ]
    assert all(float(row.pop("seconds").replace(",", "")) >= 0 for row in table)
    assert "min of training on one" in out and "short of the published protocol" in out
    shared = {"stage": "confirm", "seeds": "2", "epochs": "24", "workers": "2", "lr": "0.02"}
    assert table == [
        {**shared, "cell": "SB", "global batch": "32", "per worker": "16", "accumulation": "2"},
        {**shared, "cell": "LB", "global batch": "60", "per worker": "30", "accumulation": "4"},
    ]
    assert main(["search.epochs=0.5", "dry_run=true", cache]) == 0
    out = capsys.readouterr().out
    assert "search.epochs=0.5: search runs are shorter than confirmed ones" in out
    assert "LB + robust (the best)" in out and "LB + robust rho=0.2" in out


@pytest.mark.skipif(not SHARED.exists(), reason="the real MNIST is not here")
def test_real_images_from_a_folder_of_parquet(tmp_path, tmp_path_factory, monkeypatch):
    """They lie in a file of the cache, which is where every process of the study reads them."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("samples")))
    out = finish(
        start(tmp_path, "experiment=gap", "study.equal_loss=null", "data=parquet",
              f"data.root={SHARED / 'mnist'}", "data.channels=1",
              "network=f1", "network.widths=[64,64]", "data.train_samples=2000", "data.test_samples=500",
              "small_batch=64", "seeds=2", "replicas=2", "epochs=3", "data.memory_gib=0",
              "measure.sharpness.solvers=[converged]")
    )  # fmt: skip
    final = results.load(tmp_path / "gap").query("metric == 'accuracy' and split == 'test' and epoch.isna()")
    assert (final["value"] > 70).all() and len(final) == 4 and 2 in set(final["replicas"])
    assert "SB" in out


def test_two_runs_do_not_share_a_folder_and_sigterm_ends_one(tmp_path, cache):
    first = start(tmp_path, "experiment=gap", "study.equal_loss=null", cache)
    wait_for(lambda: (tmp_path / "gap" / ".lock").exists(), first)
    second = start(tmp_path, "experiment=gap", "study.equal_loss=null", cache)
    _, err = second.communicate(timeout=60)
    assert second.returncode == 2 and err.count("\n") == 1 and "another lbdist is at work" in err
    # SIGTERM, once a cell trains, ends like Ctrl-C; what comes while Ray starts is tested with the kills
    wait_for(lambda: any("ray::ImplicitFunc" in " ".join(cmdline(p)) for p in family(first)), first)
    members = family(first)
    first.send_signal(signal.SIGTERM)
    out, err = first.communicate(timeout=60)
    assert first.returncode == 143, out + err
    assert err.strip().count("\n") == 0 and "To go on: python -m lbdist.run" in err, err
    gone(members)
    assert "RAY_AUTH_MODE" in os.environ
