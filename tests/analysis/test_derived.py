"""What is derived from measured rows, against numbers that are known."""

from __future__ import annotations

import pytest

from lbdist.analysis.derived import rises
from lbdist.analysis.runs import Runs
from tests.support.rows import frame, training, ways


def test_rises_are_of_the_training_loss_on_the_line() -> None:
    """Parabolas of curvatures 2 and 8 rise by half of that, times the square of a quarter."""
    rows = [row for name in ("SB", "LB") for seed in (0, 1) for row in training(name, seed, 70.0)]
    found = rises(Runs(frame([*rows, *ways("LB", 0), *ways("LB", 1)])))
    assert list(found["label"]) == ["LB", "LB"] and list(found["seed"]) == [0, 1]
    assert list(found["own"]) == pytest.approx([1 / 16] * 2)
    assert list(found["there"]) == pytest.approx([1 / 4] * 2)
