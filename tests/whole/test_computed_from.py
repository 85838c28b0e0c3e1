"""A run is what it is computed from: data, weights and code, each changed behind a store's back."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from torch import nn

from lbdist import results
from lbdist.config.compose import compose_parts
from lbdist.config.schema import check
from lbdist.plan import Cell
from lbdist.prepare import prepare
from tests.support.commands import KEY, serially
from tests.support.plans import composed_of, make_study
from tests.support.samples import signals

Arrays = dict[str, np.ndarray]


def arrays() -> Arrays:
    data = signals(train=200, test=60)
    return {
        f"{part}_{kind}": getattr(getattr(data, part), kind)
        for part in ("train", "test")
        for kind in ("inputs", "labels")
    }


def write(file: Path, content: Arrays) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez(file, **content)
    return file


SMALL = ["small_batch=8", "epochs=4", "seeds=1", "test_points=4", "data=mine", "network.widths=[16,16]"]
GAP = ("experiment=gap", "study.equal_loss=null", "measure=[fit]")


def configs(folder: Path) -> Path:
    """A folder of configurations, of a data source of the user's."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    source = "# mine\n_target_: tests.support.sources.Arrays\nname: mine\nroot: null\n"
    (folder / "data" / "mine.yaml").write_text(source + "train_samples: null\ntest_samples: null\n")
    return folder


def ran(storage: Path, file: Path, *words: str) -> pd.DataFrame:
    """The rows of a study that is run on a file's arrays."""
    small = SMALL[1:5] if "network=line" in words else SMALL
    own = ["--config-dir", str(configs(storage / "configs"))]
    serially(storage, f"data.root={file}", *words, *own, shrunk=small)
    rows = results.load(storage / ("checkpoints" if "experiment=checkpoints" in words else "gap"))
    return rows[~rows.metric.isin(["seconds", "overhead_seconds"])].sort_values([*KEY, "value"])


def cells(file: Path, *words: str) -> dict[str, Cell]:
    overrides = [*SMALL, f"data.root={file}", *words, "executor=serial", "storage=none"]
    composed, parts = compose_parts(overrides, [configs(file.parent / "configs")])
    check(composed)
    return {cell.label: cell for cell in prepare(composed, parts).cells.values()}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("arrays")


SEARCHED = ("experiment=remedies", "measure=[]", "study.check_workers=null", "study.check_precision=null")


@pytest.fixture(scope="module")
def before(place: Path) -> dict[str, Cell]:
    return cells(write(place / "one.npz", arrays()), *SEARCHED)


@settings(max_examples=8, deadline=None)
@given(part=st.sampled_from(["train", "test"]), kind=st.sampled_from(["inputs", "labels"]), data=st.data())
def test_every_byte_of_the_samples_is_part_of_an_id(
    place: Path, before: dict[str, Cell], part: str, kind: str, data: Any
) -> None:
    """But the test set's of a run that holds samples out: it never reads them."""
    content = arrays()
    changed = content[f"{part}_{kind}"]
    at = data.draw(st.integers(0, len(changed) - 1))
    if kind == "labels":
        changed[at] = (changed[at] + data.draw(st.integers(1, 3))) % 4
    else:
        flat = changed[at].view(np.uint8)
        flat[data.draw(st.integers(0, changed.shape[1] - 1)) * 4] ^= 1 << data.draw(st.integers(0, 7))
    after = cells(write(place / "other.npz", content), *SEARCHED)
    assert before.keys() == after.keys()
    assert {cell.role for cell in before.values()} == {"search", "confirm"}
    for label, cell in before.items():
        reads = part == "train" or cell.role != "search"
        assert (cell.id != after[label].id) == reads, label


def test_where_the_samples_lie_is_no_part_of_an_id(place: Path) -> None:
    one = cells(write(place / "here" / "a.npz", arrays()), *GAP)
    other = cells(write(place / "there" / "b.npz", arrays()), *GAP)
    assert {c.id for c in one.values()} == {c.id for c in other.values()}


@pytest.mark.parametrize("change", ["labels", "more", "order"])
def test_a_second_run_on_other_data_gives_what_a_first_one_does(change: str, tmp_path: Path) -> None:
    content = arrays()
    file = write(tmp_path / "data.npz", content)
    before = ran(tmp_path, file, *GAP)
    if change == "labels":
        content["train_labels"] = (content["train_labels"] + (np.arange(200) % 5 == 0)) % 4
    if change == "more":
        keep = np.r_[0:200, 0:40]
        content |= {f"train_{kind}": content[f"train_{kind}"][keep] for kind in ("inputs", "labels")}
    if change == "order":
        content |= {f"train_{kind}": content[f"train_{kind}"][::-1] for kind in ("inputs", "labels")}
    write(file, content)
    again, fresh = ran(tmp_path, file, *GAP), ran(tmp_path / "fresh", file, *GAP)
    assert again.value.tolist() == fresh.value.tolist() and set(again.cell) == set(fresh.cell)
    assert not set(again.cell) & set(before.cell)


def test_a_checkpoint_is_measured_anew_on_other_data_and_under_another_loss(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, content, shown = tmp_path / "model.safetensors", arrays(), []
    safetensors.torch.save_file(nn.Linear(12, 4).state_dict(), model)
    one = write(tmp_path / "a" / "data.npz", content)
    content["train_labels"] = (content["train_labels"] + 1) % 4
    other = write(tmp_path / "b" / "data.npz", content)
    words = ["experiment=checkpoints", f"checkpoint={model}", "measure=[fit]", "network=line"]
    (configs(tmp_path / "configs") / "network").mkdir()
    line = "# one layer\n_target_: torch.nn.Linear\nname: line\nin_features: 12\nout_features: 4\n"
    (tmp_path / "configs" / "network" / "line.yaml").write_text(line)
    less, mean = ["data.train_samples=100"], ["loss._target_=tests.support.sources.Smoothed"]
    for file, more in ((one, []), (other, []), (one, less), (one, mean), (one, [])):
        rows = ran(tmp_path, file, *words, *more)
        shown.append(rows[(rows.metric == "loss") & (rows.split == "train")].value.item())
    assert len(set(shown)) == 4 and shown[0] == shown[-1]


NETWORK = """
import torch
from torch import nn
from blocks import WIDTH, weights

class Net(nn.Sequential):
    def __init__(self, inputs, classes, file=None):
        super().__init__(nn.Linear(inputs, WIDTH), nn.ReLU(), nn.Linear(WIDTH, classes))
        if file is not None:
            self[0].weight.data = weights(file)
"""
BLOCKS = """
import torch
WIDTH = 16
def weights(file):
    return torch.load(file, weights_only=True)
"""


def test_own_code_and_weights_are_known(tmp_path: Path) -> None:
    """Of a network, and of a module that it imports; what has changed is told, and trained again if asked."""
    project = tmp_path / "project"
    project.mkdir()
    (project / "own.py").write_text(NETWORK)
    (project / "blocks.py").write_text(BLOCKS)
    (project / "unused.py").write_text("")
    torch.save(torch.rand(16, 12) - 0.5, project / "w.pt")
    file = write(tmp_path / "data.npz", arrays())
    (configs(tmp_path / "configs") / "network").mkdir()
    own = "# own\n_target_: own.Net\nname: own\ninit: keep\ninputs: 12\nclasses: 4\nfile: w.pt\n"
    (tmp_path / "configs" / "network" / "own.yaml").write_text(own)
    common = [*SMALL[:5], "network=own", f"data.root={file}", *GAP, "executor=serial"]
    common += ["--config-dir", str(tmp_path / "configs")]

    def run(*more: str) -> tuple[str, set[str], float]:
        command = [sys.executable, "-m", "lbdist.run", *common, f"storage={tmp_path / 's'}", *more]
        done = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        found = results.load(tmp_path / "s" / "gap")
        final = found[(found.metric == "loss") & (found.split == "train") & found.epoch.isna()]
        return done.stdout, set(found.cell), final[final.measure.isna()].value.mean()

    said, ids, loss = run()
    assert "other code" not in said
    (project / "unused.py").write_text("# changed")
    assert run()[1:] == (ids, loss)
    (project / "blocks.py").write_text(BLOCKS.replace("weights_only=True)", "weights_only=True) * 1"))
    said, *same = run()
    assert "trained by other code: SB seed 0: own.Net has changed" in said and same == [ids, loss]
    assert "measured by other code: fit (2)" in said
    assert "trained by other code: SB seed 0" in (tmp_path / "s/gap/report.html").read_text()
    said, *again = run("retrain=changed")
    assert "other code" not in said and again[0] == ids and again[1] == pytest.approx(loss)
    (project / "blocks.py").write_text(BLOCKS.replace("weights_only=True)", "weights_only=True) / 2"))
    _, others, changed = run()  # they are other weights
    assert not ids & others and changed != loss
    torch.save(torch.rand(16, 12) - 0.5, project / "w.pt")
    assert not (ids | others) & run()[1]


LEFT_OUT = {
    "storage", "executor", "retrain", "max_concurrent", "retries", "regroup_seconds", "dry_run", "name",
    "seeds_at_once", "checkpoint", "checkpoint_key", "seeds", "search.seeds", "search.samples",
    "combinations",
}  # fmt: skip
"""Keys that say which runs there are, where or by what; that the rows are the same is shown where each is
tested."""


def leaves(node: Any, at: str = "") -> dict[str, Any]:
    if not isinstance(node, dict):
        return {at: node}
    return {k: v for key, inner in node.items() for k, v in leaves(inner, f"{at}.{key}".strip(".")).items()}


RUNS = ("experiment=gap", "remedy=[none]", "study.equal_loss=null", "schedule.decay=step")
KEYS = leaves(OmegaConf.to_container(composed_of(RUNS)[0]))
NOT_OF_RUNS = ("measure.", "derived.", "study.", "remedy.", "scale.", "data.", "search.")
OTHERS = {
    "precision": "bfloat16", "lr_rule": "sqrt", "schedule.decay": "cosine", "num_workers": 2,
    "schedule.milestones": "[0.3]", "ghost_batch_size": 16, "micro_batch_size": 16, "patience": 2,
    "network.batch_norm": "false", "large_batch": 300, "network.widths": "[8,8]", "schedule.gamma": 0.2,
}  # fmt: skip
"""Values beside the default that a number more would not be. Other texts are names or classes (test_plan)."""
OF_RUNS = [
    key
    for key, value in KEYS.items()
    if not key.startswith(NOT_OF_RUNS)
    and key not in LEFT_OUT
    and (key in OTHERS or not isinstance(value, str))
]


@pytest.mark.parametrize("key", OF_RUNS)
def test_every_key_of_a_run_is_part_of_its_id(key: str) -> None:
    value = KEYS[key]
    other = OTHERS.get(key, value + 1 if isinstance(value, int | float) else 2)
    before, after = (
        {c.label: c.id for c in make_study(*RUNS, *more).cells(lambda cell: {"test_accuracy": 0.0})}
        for more in ([], [f"{key}={other}"])
    )
    assert before != after, (key, value, other)
