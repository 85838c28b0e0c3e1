"""What the sections of landscapes and of checkpoints say of rows whose numbers are known."""

from __future__ import annotations

import pytest

from lbdist.analysis.runs import Runs
from lbdist.analysis.sections import checkpoints, landscape
from tests.support.rows import frame, model, plane, training, ways


def runs() -> Runs:
    rows = [row for name in ("SB", "LB") for row in training(name, 0, 70.0)]
    return Runs(frame([*rows, *ways("LB", 0), *plane("SB", 0), *plane("LB", 0)]))


def test_the_table_of_slices_has_losses_barrier_and_rises() -> None:
    section = landscape.sections(runs())[0]
    (table,) = section.tables
    line, curve = table.rows
    assert [line[0].text, line[1].text, curve[1].text] == ["LB", "line", "curve"]
    numbers = [float(entry.values[""]) for entry in line[2:]]
    at_sb, there, barrier, rise, rise_there = numbers
    assert (at_sb, there) == pytest.approx((0.1, 0.1))
    assert barrier == pytest.approx(0.4375 - 0.0 - 0.1 + 0.1 - 0.0, abs=0.2)
    assert rise == pytest.approx(0.0625) and rise_there == pytest.approx(0.25)
    assert section.sentences == ["Along the line the loss rises 4.0 times more around LB than around SB."]


def test_a_figure_of_slices_shows_both_splits_of_both_metrics() -> None:
    section = landscape.sections(runs())[0]
    drawn = section.figures[0].draw()
    left, right = drawn.axes[0], drawn.axes[1] if len(drawn.axes) == 2 else drawn.axes[2]
    assert len(drawn.axes) == 4  # two ways, two scales each
    labels = [line.get_label() for axis in drawn.axes for line in axis.get_lines()]
    for wanted in ("loss, train", "loss, test", "accuracy, train", "accuracy, test"):
        assert labels.count(wanted) == 2
    styles = {
        line.get_label(): (line.get_linestyle(), line.get_marker())
        for a in (left, right)
        for line in a.get_lines()
    }
    assert (
        len({styles[name] for name in ("loss, train", "loss, test", "accuracy, train", "accuracy, test")})
        == 4
    )


def test_planes_share_one_scale() -> None:
    (figure,) = landscape.sections(runs())[1].figures
    drawn = figure.draw()
    titles = [axis.get_title() for axis in drawn.axes if axis.get_title()]
    assert titles == ["SB", "LB"]


def test_models_are_ranked_by_the_full_space() -> None:
    rows = [row for name, size in (("c.pt", 3.0), ("a.pt", 1.0), ("b.pt", 2.0)) for row in model(name, size)]
    (section, _) = checkpoints.sections(Runs(frame(rows)))
    models, whole = section.tables
    assert [row[0].text for row in models.rows] == ["a.pt", "b.pt", "c.pt"]
    assert models.lines == ["model", "train accuracy", "train loss", "sharpness φ(1e-3)", "sharpness φ(5e-4)"]
    assert [entry.text for entry in models.rows[0]] == ["a.pt", "98.0", "0.100", "10.0", "5.00"]
    assert [entry.text for entry in whole.rows[0]] == [
        "a.pt",
        "1e-3",
        "10.0",
        "10.0",
        "10.5 ± 0.7*",
        "10.5 ± 0.7",
    ]
    said = "The flattest of 3 is a.pt: φ(1e-3) 10.0; the sharpest is c.pt, φ(1e-3) 30.0, 3.0 times as sharp."
    assert section.sentences == [said]
