"""lbdist as a library: what is public, and that it is what the command does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import lbdist
from lbdist import results
from lbdist.errors import Failure, InputError
from lbdist.losses import MeanSquaredError
from lbdist.objective import Objective
from tests.support.commands import SMALL
from tests.support.rows import STORY, study

X = torch.randn(200, 12, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long() + 2 * (X[:, 1] > 0).long()


def sgd(parameters: list[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for _, p in parameters], 0.1)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))


def test_what_is_public_is_there_and_comes_when_it_is_asked_for() -> None:
    assert all(getattr(lbdist, name) is not None for name in lbdist.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        lbdist.nothing  # noqa: B018
    program = "import sys, lbdist; print({'torch', 'ray', 'pandas'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100)
    assert done.stdout.strip() == "set()"


def test_a_study_is_what_the_command_makes_it(
    alone: tuple[Path, str], tmp_path: Path, cache: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*SMALL, "executor=serial", "study.equal_loss=null", cache]
    rows = lbdist.run_study("gap", *words, f"storage={tmp_path}")
    assert "report: " in capsys.readouterr().out
    known = results.load(alone[0] / "remedies").query("remedy == 'none' and role == 'confirm'")
    final = "metric == 'accuracy' and epoch.isna() and measurement.isna() and split == 'test'"
    found, before = (frame.query(final).set_index("method")["value"].to_dict() for frame in (rows, known))
    assert found == pytest.approx(before) and set(found) == {"SB", "LB"}
    with pytest.raises(InputError, match="seedz=3: there is no key seedz"):
        lbdist.run_study("gap", "seedz=3")
    points = ["-m", "optimizer.lr=0.001,0.01", "measure=[fit]"]
    swept = lbdist.run_study("gap", *SMALL[:-2], *words[len(SMALL) :], *points, f"storage={tmp_path}")
    assert set(swept["optimizer.lr"]) == {0.001, 0.01}


def test_a_study_of_which_some_failed_says_so(tmp_path: Path, cache: str) -> None:
    words = [*SMALL, "executor=serial", "optimizer.lr=1e30", "study.equal_loss=null", f"storage={tmp_path}"]
    with pytest.raises(Failure, match="gap: some of it failed"):
        lbdist.run_study("gap", *words, cache)
    assert len(results.load(tmp_path / "gap"))


def test_training_is_that_of_a_bare_loop_on_the_same_batches() -> None:
    """One epoch of the whole set in one batch is one step of plain PyTorch, in whatever order."""
    mine, bare = network(), network()
    rows = lbdist.train(mine, (X, Y), (X[:50], Y[:50]), batch_size=200, epochs=1, optimizer=sgd)
    optimizer = torch.optim.SGD(bare.parameters(), 0.1)
    loss = nn.functional.cross_entropy(bare(X), Y)
    loss.backward()
    optimizer.step()
    for one, other in zip(mine.state_dict().values(), bare.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert rows.query("metric == 'running_loss'").value.iloc[0] == pytest.approx(loss.item(), rel=1e-5)
    bare.eval()
    right = float((bare(X[:50]).argmax(1) == Y[:50]).float().mean())
    found = rows.query("metric == 'accuracy' and split == 'test' and epoch.isna()").value.iloc[0]
    assert found == pytest.approx(100 * right, abs=2.1)  # a sample may be on the edge


GROWTH = {"_target_": "lbdist.remedies.growth.Growth", "stages": 2}


@pytest.mark.parametrize("remedy", [None, "robust", GROWTH])
def test_training_learns_with_any_remedy_and_the_same_seed_the_same(remedy: object) -> None:
    found = []
    for _ in range(2):
        mine = network()
        data = (X.numpy(), Y.numpy()), (X[:50], Y[:50])
        how = {"optimizer": sgd, "remedy": remedy, "ghost_batch_size": 10}
        rows = lbdist.train(mine, *data, batch_size=20, epochs=8, seed=3, **how)
        found.append(torch.cat([p.detach().flatten() for p in mine.parameters()]))
    assert torch.equal(*found) and rows.query("metric == 'accuracy'").value.iloc[-1] > 70
    curve = rows.query("metric == 'loss' and split == 'test' and epoch.notna()")
    assert list(curve.epoch) == list(range(1, 9)) and curve.value.iloc[-1] < curve.value.iloc[0]
    value, gradient = Objective(mine, (X, Y))(lbdist.objective.Objective(mine, (X, Y)).x)
    assert np.isfinite(value) and torch.isfinite(gradient).all()  # the module is an ordinary one


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"batch_size": 0}, "batch_size=0: must be from 1 to 200, the samples"),
        ({"batch_size": 201}, "batch_size=201: must be from 1 to 200"),
        ({"epochs": 0}, "epochs=0: must be at least 1"),
        ({"remedy": "sam"}, "remedy=sam: must be one of adversarial"),
        ({"train": (X[:10], Y)}, "train: 10 inputs for 200 labels"),
        ({"train": (X[:0], Y[:0])}, "train: 0 inputs for 0 labels"),
        ({"loss": MeanSquaredError()}, "must be finite floating-point numbers"),
        ({"network": nn.Sequential()}, "network: has no trainable parameters"),
    ],
)
def test_wrong_input_is_one_line(changes: dict, said: str) -> None:
    given = {"network": network(), "train": (X, Y), "test": (X, Y), "batch_size": 20, "epochs": 1, **changes}
    with pytest.raises(InputError) as refused:
        lbdist.train(**given)
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_the_ordinary_question_has_the_tables_answer(tmp_path: Path) -> None:
    rows = study(("SB", "LB", "robust"), seeds=3)
    board = lbdist.leaderboard(rows)
    assert list(board.index) == ["SB", "LB", "LB + robust"]
    for name in ("SB", "LB"):
        mean, std, phi, *_ = STORY[name]
        assert board.loc[name, "test accuracy %"] == pytest.approx(mean)
        assert board.loc[name, "test accuracy % std"] == pytest.approx(std)
        assert board.loc[name, "sharpness φ(1e-3)"] == pytest.approx(phi)
    assert board.loc["LB", "gap to SB, points"] == pytest.approx(STORY["SB"][0] - STORY["LB"][0])
    page = lbdist.report(rows, tmp_path, "mine", {"by": "me"})
    assert "mine" in Path(page).read_text() and (tmp_path / "tables" / "leaderboard.csv").exists()
    assert lbdist.leaderboard(rows.iloc[:0]).empty
    with pytest.raises(ValueError, match="the rows of one study are needed"):
        lbdist.leaderboard(rows.assign(network=["a", "b"] * (len(rows) // 2) + ["a"] * (len(rows) % 2)))


def test_a_regression_is_scored_by_what_it_is(tmp_path: Path) -> None:
    rows = study(("SB", "LB"), seeds=2, measure=False)
    rows["metric"] = rows["metric"].replace({"accuracy": "r2"})
    assert "test r2" in lbdist.leaderboard(rows).columns
