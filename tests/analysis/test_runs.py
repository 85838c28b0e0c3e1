"""The runs of a study: what their methods are called, and which are counted."""

from __future__ import annotations

from lbdist.analysis.runs import Runs
from lbdist.analysis.sections import leaderboard
from tests.support.rows import frame, training


def test_two_settings_of_a_remedy_are_two_methods_and_say_which() -> None:
    rows = [row for seed in range(2) for row in training("SB", seed, 72.0) + training("LB", seed, 65.0)]
    for seed in range(2):
        rows += training("robust", seed, 70.0, setting="rho=0.2")
        rows += training("robust", seed, 74.0, setting="rho=0.5")
        rows += training("growth", seed, 71.0)
    rows += training("growth", 10_000, 60.0, role="search", setting="stages=3")  # counted in no mean
    board = leaderboard.leaderboard(Runs(frame(rows))).set_index("method")
    assert list(board.index) == ["SB", "LB", "LB + robust rho=0.5", "LB + growth", "LB + robust rho=0.2"]
    assert {label: (row["score"].mean, row["n"]) for label, row in board.iterrows()} == {
        "SB": (72.0, 2),
        "LB": (65.0, 2),
        "LB + robust rho=0.5": (74.0, 2),
        "LB + growth": (71.0, 2),
        "LB + robust rho=0.2": (70.0, 2),
    }


def test_cells_of_other_roles_are_counted_in_no_mean() -> None:
    rows = training("LB", 0, 65.0)
    roles = ("workers", "precision", "timing", "collectives", "branch", "advised", "benchmark", "search")
    for seed, role in enumerate(roles, 1):
        rows += training("LB", seed, 0.0, role=role)
    equal = training("LB", 20, 66.0, role="equal_loss")
    runs = Runs(frame(rows + equal))
    assert dict(zip(runs.counted["label"], runs.counted["score"], strict=True)) == {
        "LB": 65.0,
        "LB to SB's loss": 66.0,
    }
