"""Every shape of study, shrunk, to its report: in this process, without Ray."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import ray

from lbdist import results
from lbdist.config.compose import config_root
from lbdist.run import main
from lbdist.storage import Store
from tests.support.commands import UNMEASURED, agree, here, serially, start, values, wait_for
from tests.support.repository import project

# `checkpoints` needs a file: see tests/studies/test_checkpoints.py
STUDIES = sorted({path.stem for path in (config_root() / "experiment").glob("*.yaml")} - {"checkpoints"})
SHARED = Path(__file__).parents[3] / "shared" / "data"


def test_ray_is_not_imported(tmp_path, cache):
    """What a debugger, a notebook or a machine without Ray meets; a group of workers is refused."""
    words = [*UNMEASURED, "executor=serial", "experiment=gap", "study.equal_loss=null", f"storage={tmp_path}"]
    program = (
        "import sys; from lbdist.run import main; status = main(sys.argv[1:]);"
        "print(status, sorted(name for name in sys.modules if name.partition('.')[0] == 'ray'))"
    )
    command = [sys.executable, "-c", program, *words, "measure=[distance]", cache]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.stdout.endswith("\n0 []\n"), done.stdout + done.stderr
    out = here(tmp_path, *words[len(UNMEASURED) :], "num_workers=2", cache, status=2)
    said = "lbdist: num_workers=2: must be at most 1, since executor=serial runs in this process alone"
    assert out.splitlines()[-1].startswith(said)


def test_an_interrupted_run_goes_on_and_two_at_once_are_one(alone, tmp_path, cache):
    """In one storage, where they train the same cells: one is killed, the other ends as if alone."""
    words = ["executor=serial", cache]
    other = start(tmp_path, "experiment=batch_size", "study.batches=[16,40]", "epochs=2000", *words)
    wait_for(lambda: list(tmp_path.glob("cells/*/resume.pt")), other)
    again = start(tmp_path, "experiment=gap", "study.equal_loss=null", *words)
    wait_for(lambda: list(tmp_path.glob("cells/*/rows.parquet")), again)
    other.kill()
    again.send_signal(signal.SIGINT)
    out, err = again.communicate(timeout=60)
    assert again.returncode in (0, 130) and "Traceback" not in out + err, out + err
    serially(tmp_path, "experiment=gap", "study.equal_loss=null", cache)
    found = values(tmp_path / "gap")
    agree(found, values(alone[0] / "remedies"), least=len(found))


def test_a_study_lives_in_an_object_store(
    s3: str, alone: tuple[Path, str], tmp_path: Path, cache: str
) -> None:
    """Rows, models, report and lock on S3, whatever interrupts it; nothing is on the disk.

    Through Ray: tests/cluster/test_slurm.py and, what is measured, tests/sharpness/test_pool.py.
    """
    root = s3.format("study")
    arguments = ["executor=serial", "experiment=gap", "study.equal_loss=null", cache, f"storage={root}"]
    first = start(tmp_path, *arguments)
    assert first.stdout is not None
    for line in first.stdout:
        if line.startswith("[1/"):
            break
    first.send_signal(signal.SIGTERM)
    out, err = first.communicate(timeout=300)
    assert first.returncode == 143 and "interrupted; what is finished is kept" in err and "secret" not in out
    store = Store(root)
    assert len([name for name in store.names("cells") if name.endswith("rows.parquet")]) >= 1
    assert "gap/lock.json" not in store.names()
    out = here(tmp_path, *arguments)
    assert "SB" in out and "secret" not in out and not list(tmp_path.iterdir())
    study = f"{root.partition('?')[0]}/gap?{root.partition('?')[2]}"
    rows, found = results.load(study), values(study)
    assert set(rows["method"]) == {"SB", "LB"} and "sharpness" in set(rows["measure"])
    agree(found, values(alone[0] / "remedies"), least=len(found))
    names = store.names()
    for cell in rows["cell"].unique():
        wanted = {f"cells/{cell}/{name}" for name in ("cell.json", "model.safetensors", "rows.parquet")}
        assert {name for name in names if name.startswith(f"cells/{cell}/")} == wanted
    assert "secret" not in store.read("gap/report.html").decode()
    again = here(tmp_path, *arguments)
    assert "[1/" not in again and again[again.index("Mean") :] == out[out.index("Mean") :]


def test_studies_of_a_storage_folder_share_cells_and_measurements(copied, cache):
    """`gap` after `remedies` has nothing to train or measure; a report says which code trained its cells."""
    storage = copied
    alike = ["experiment=gap", "study.equal_loss=null", cache]
    out = serially(storage, *alike)
    assert "[1/" not in out and "LB" in out
    keys = ["method", "seed", "metric", "split", "epsilon", "space", "solver", "epoch"]
    gap, whole = (results.load(storage / name).query("role == 'confirm' and remedy == 'none'")
                  for name in ("gap", "remedies"))  # fmt: skip
    pd.testing.assert_series_equal(*(rows.set_index(keys)["value"].sort_index() for rows in (gap, whole)))
    assert len(results.load(storage).query("method == 'SB' and metric == 'steps'")) == 1
    dry = serially(storage, *alike, "dry_run=true")
    assert "2 of the cells are done" in dry
    for path in (storage / "cells").glob("*/cell.json"):
        content = results.read_cell(storage, path.parent.name)
        content["provenance"]["commit"], content["code"]["lbdist"] = "0123abc", "other"
        results.write_cell(storage, path.parent.name, content)
    out = serially(storage, *alike)
    version = project()["version"]
    assert f"trained by other code: SB seed 0: by lbdist {version}, commit 0123abc" in out
    assert f"today's is lbdist {version}" in out and "measured by other code" not in out
    assert "commit 0123abc" in (storage / "gap" / "report.html").read_text()


def test_studies_of_other_shapes_run_to_their_reports(tmp_path, cache):
    batches = serially(tmp_path, "experiment=batch_size", cache, "measure=[sharpness,lambda_max]")
    assert "Test accuracy is highest at batch" in batches and "lambda max" in batches
    rows = results.load(tmp_path / "batch_size")
    sizes = set(rows["global_batch_size"])
    assert sizes == {2, 3, 6, 13, 26, 40, 102, 400}
    assert set(rows.query("metric == 'lambda_max'")["global_batch_size"]) == sizes
    warm = serially(tmp_path, "experiment=warm_start", cache, "small_batch=13")
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


def drawn(study):
    assert (study / "figures" / f"{study.name}.png").exists()
    assert "<svg" in (study / "report.html").read_text()


def test_a_benchmark_runs_to_its_report(tmp_path, cache):
    own = ["study.workers=[1]", "~study.procedures.DataLoader", "epochs=2"]
    timed = serially(tmp_path, "experiment=benchmark", cache, *own, shrunk=UNMEASURED)
    assert "Samples a second at batch 40: lbdist takes " in timed
    drawn(tmp_path / "benchmark")


def test_a_study_of_scaling_runs_to_its_report(tmp_path, cache):
    """On one worker; what is shown of several is tested by made-up rows."""
    quick = [f"study.timing.{key}" for key in ("least=2", "seconds=0.1", "block=0.01")]
    quick += [f"study.collectives.{key}" for key in ("repeats=1", "seconds=0.005")]
    quick += ["seeds=2", "measure.noise_scale.group=8", "remedy=[none,growth]", "study.predicted=[64]"]
    quick += ["study.epochs=[1,2]"]
    said = " ".join(serially(tmp_path, "experiment=scaling", cache, *quick, shrunk=UNMEASURED).split())
    for text in ("steps are not timed on 2 and 4 and 8 workers", "A training step, timed",
                 "times as fast as SB", "The critical batch along training"):  # fmt: skip
        assert text in said, text
    study = tmp_path / "scaling"
    tables = {path.stem for path in (study / "tables").glob("*.csv")}
    assert tables == {"break_even", "break_even_model", "steps", "remedy_steps", "step_model",
                      "steps_to_score", "critical_batch", "branches"}  # fmt: skip
    rows = results.load(study)
    assert rows[rows["role"] == "model"].set_index("metric")["value"]["t"] > 0
    figures = {path.stem for path in (study / "figures").glob("*.png")}
    assert figures == {
        "time_to_score",
        "throughput",
        "steps_to_score",
        "critical_batch",
    }


def test_the_advisor_runs_to_its_recommendation(tmp_path, cache):
    quick = [f"study.timing.{key}" for key in ("least=2", "seconds=0.1", "block=0.01")]
    quick += ["study.workers=[1]", "seeds=2", "measure.noise_scale.group=8", "remedy=[none,augmentation]"]
    quick += ["study.epochs=[2]", "study.rules=[none,sqrt]"]
    said = " ".join(serially(tmp_path, "experiment=advise", cache, *quick, shrunk=UNMEASURED).split())
    assert re.search(r"Take a global batch of [\d,]+ on 1 worker|Stay at batch 32", said)
    assert "The batches to choose from" in said and "Remedies at the recommended batch" in said
    assert "The gradient noise scale is " in said
    rows = results.load(tmp_path / "advise")
    advised = rows[(rows["role"] == "advised") & (rows["metric"] == "accuracy")]
    assert set(advised["split"].dropna()) <= {"train", "validation"}  # nothing is chosen on the test set
    assert set(advised["remedy"]) == {"none", "augmentation"}


def test_a_study_whose_cells_all_fail_says_so_in_one_line(tmp_path, cache, monkeypatch):
    (tmp_path / "failing.py").write_text(
        "import torch\n"
        "class Adam(torch.optim.Adam):\n"
        "    steps = 0\n"
        "    def step(self, closure=None):\n"
        "        self.steps += 1\n"
        "        if self.steps > 2:  # the first are rehearsed\n"
        "            raise RuntimeError('no step')\n"
        "        return super().step(closure)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    words = ["experiment=gap", "study.equal_loss=null", cache, "optimizer._target_=failing.Adam"]
    out = serially(tmp_path, *words, status=1)
    assert "Traceback" not in out
    assert out.splitlines()[-1] == "lbdist: no cell finished, so there is nothing to report"
    assert "failed: RuntimeError: no step" in out
    for method in ("SB", "LB"):
        assert f"lbdist: failed: {method} seed 0: RuntimeError: no step; run the command again" in out


@pytest.mark.parametrize("study", STUDIES)
def test_every_study_has_a_dry_run(study, tmp_path, cache, monkeypatch, capsys, unestimated):
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
    assert (
        "min of training by" in out
        and "min of measuring by" in out
        and "short of the published protocol" in out
    )
    shared = {"role": "confirm", "seeds": "2", "epochs": "24", "workers": "2", "lr": "0.02"}
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
    """They lie in a file of the cache, which is where every process of a study reads them."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("samples")))
    words = ["experiment=gap", "study.equal_loss=null", "data=parquet", f"data.root={SHARED / 'mnist'}"]
    words += ["data.channels=1", "data.train_samples=2000", "data.test_samples=500", "data.memory_gib=0"]
    words += [
        "network=f1",
        "network.widths=[64,64]",
        "small_batch=64",
        "seeds=2",
        "seeds_at_once=2",
        "epochs=3",
    ]
    out = serially(tmp_path, *words, "measure.sharpness.solvers=[converged]")
    final = results.load(tmp_path / "gap").query("metric == 'accuracy' and split == 'test' and epoch.isna()")
    assert (final["value"] > 70).all() and len(final) == 4 and 2 in set(final["seeds_at_once"])
    assert "SB" in out
