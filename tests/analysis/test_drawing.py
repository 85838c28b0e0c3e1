from itertools import pairwise

import numpy as np
import pytest
from matplotlib.figure import Figure

from lbdist.analysis import drawing
from lbdist.analysis.runs import Runs
from lbdist.analysis.sections import comparison, curves, leaderboard
from tests.support.rows import STORY, frame, sharpness, study, training


def figures(rows):
    """Every figure of a comparison, by name."""
    return {f.name: f for section in comparison.sections(Runs(rows)) for f in section.figures}


def leaderboard_data(rows):
    runs = Runs(rows)
    return leaderboard.leaderboard_data(runs, leaderboard.leaderboard(runs))


@pytest.fixture(scope="module")
def rows():
    return study(epochs=(2, 20, 40), check=True)


def test_curve_data():
    cells = [training("LB", seed, 60.0) for seed in range(3)]
    for cell, accuracy in zip(cells, (40.0, 50.0, 60.0), strict=True):
        cell.append(
            {**cell[0], "epoch": 3, "step": 30, "metric": "accuracy", "split": "test", "value": accuracy}
        )
    lost = training("LB", 3, 9.8, epochs=(3,), diverged=1)
    (row,) = Runs(frame([row for cell in [*cells, lost] for row in cell])).curves.to_dict("records")
    assert row == {"label": "LB", "epoch": 3, "mean": 50.0, "std": 10.0, "n": 3}


def test_curves_leave_out_the_extra_cell(rows):
    data = Runs(rows).curves
    assert set(data["n"]) == {3} and set(data["epoch"]) == {2, 20, 40} and len(data) == 3 * len(STORY)


def test_scatter_data(rows):
    data = curves.scatter_data(Runs(rows))
    assert len(data) == 3 * len(STORY)
    lb = data[data["label"] == "LB"].sort_values("seed")
    assert np.allclose(lb["score"], [64.8, 65.5, 66.2]) and np.allclose(lb["phi"], [1205, 1290, 1375])


def test_leaderboard_data(rows):
    data = leaderboard_data(rows).set_index("label")
    assert data.loc["LB", ["mean", "std", "n", "phi", "phi_std"]].tolist() == pytest.approx(
        [65.5, 0.7, 3, 1290, 85]
    )
    assert leaderboard_data(study(("SB",), measure=False))["phi"].isna().all()


def test_marks_tell_methods_apart_without_colour():
    marks = drawing.marks([f"LB + {n}" for n in range(30)])
    assert marks["SB"].line != marks["LB"].line and marks["SB"].marker != marks["LB"].marker
    assert len({(mark.color, mark.marker) for mark in marks.values()}) == 32
    few = drawing.marks([f"LB + {name}" for name in STORY])
    assert len({mark.marker for mark in few.values()}) == len(few)


@pytest.mark.parametrize(("counts", "text"), [([3, 3], "3 seeds"), ([1], "1 seed"), ([3, 2], "2 to 3 seeds")])
def test_seeds_text(counts, text):
    assert drawing.seeds_text(counts) == text


def test_captions_state_the_spread():
    drawn = figures(study(("SB", "LB"), epochs=(2, 4)))
    assert "bands are ± one standard deviation over 3 seeds" in drawn["curves"].caption
    assert "error bars are ± one standard deviation" in drawn["leaderboard"].caption
    assert "(log scale)" in drawn["leaderboard"].draw().axes[1].get_xlabel()
    assert drawn["curves"].draw().axes[0].get_ylabel() == "test accuracy (%)"


def test_names_of_lines_do_not_overlap(rows):
    figure = curves.draw_curves({"test": Runs(rows).curves})
    figure.draw_without_rendering()
    boxes = sorted((text.get_window_extent() for text in figure.axes[0].texts), key=lambda box: box.y0)
    assert len(boxes) == len(STORY)
    assert all(below.y1 <= above.y0 for below, above in pairwise(boxes))
    assert all(box.x1 <= figure.bbox.x1 for box in boxes)
    marks = [line for line in figure.axes[0].lines if list(line.get_xdata()) == [1.04]]
    heights = sorted(text.get_position()[1] for text in figure.axes[0].texts)
    assert sorted(line.get_ydata()[0] for line in marks) == heights  # one before each name


def test_only_what_was_measured_is_drawn():
    assert figures(frame([])) == {}
    assert list(figures(study(("SB",), seeds=1, measure=False))) == ["leaderboard"]
    one = figures(study(("SB", "LB"), seeds=1, measure=False, epochs=(5,)))
    assert "there is no band" in one["curves"].caption and len(one["leaderboard"].draw().axes) == 1


def test_a_flat_zero_has_no_place_on_a_log_axis():
    cells = [training(name, 0, 70.0) for name in ("SB", "LB")]
    rows = frame([*cells[0], *cells[1], sharpness(cells[0], 0.0), sharpness(cells[1], 50.0)])
    drawn = figures(rows)
    assert "1 run with φ = 0 cannot be shown" in drawn["scatter"].caption
    assert "no value" in [text.get_text() for text in drawn["leaderboard"].draw().axes[1].texts]


@pytest.mark.parametrize("decades", [0.5, 1.6, 2.2, 3.7, 6.0])
def test_numbers_on_a_logarithmic_axis_do_not_touch(decades):
    """In a figure's half, as wide as the narrowest that has one."""
    figure = Figure(figsize=(7.2, 3.8), layout="constrained")
    panels = figure.subplots(1, 2)
    panels[0].plot(np.geomspace(3 * 10**-decades, 3, 5), range(5))
    panels[0].set_xscale("log")
    drawing.plain_ticks(panels[0].xaxis)
    figure.draw_without_rendering()
    low, high = panels[0].get_xlim()
    shown = [label for label in panels[0].get_xticklabels() if low <= label.get_position()[0] <= high]
    boxes = sorted((label.get_window_extent() for label in shown), key=lambda box: box.x0)
    assert len(boxes) > 1 and all(one.x1 < other.x0 for one, other in pairwise(boxes))
