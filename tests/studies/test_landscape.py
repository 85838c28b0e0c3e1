"""The landscape study: which pairs are measured, and the command from training to the figures."""

from __future__ import annotations

from pathlib import Path

import pytest

from lbdist import results
from lbdist.run import main
from lbdist.studies.base import cells_of, whole
from tests.support.commands import UNMEASURED, serially
from tests.support.plans import Story, finish, make_study, quality


def test_ways_go_from_sb_to_each_other_model_of_its_seed() -> None:
    study = make_study("experiment=landscape", "remedy=[none,robust]", "seeds=2")
    cells = list(cells_of(study, whole(study)).values())
    ends = [cell for cell in cells if cell.role == "confirm"]
    assert len(ends) == 6 and len(cells) == 6 + 2  # robust is searched for in two settings
    found = list(study.measurements(whole(study)))
    pairs = [m for m in found if len(m.at) == 2]
    assert len(pairs) == 2 * 2 * 2 and len(found) == len(pairs) + 6  # a line and a curve; a plane at each
    for measurement in pairs:
        first, second = (point.cell for point in measurement.at)
        assert first.method == "SB" and second.method == "LB" and first.seed == second.seed
    large = study.measurements(lambda cell: {"a": 0.0} if cell.method == "LB" else None)
    assert not [m for m in large if len(m.at) == 2]


def test_the_landscape_of_a_remedy_is_that_of_the_setting_that_is_chosen() -> None:
    remedies = ("remedy=[none,robust]", "seeds=2")
    for name in ("landscape", "sharpness_vs_loss", "remedies"):
        study, story = make_study(f"experiment={name}", *remedies), Story(quality)
        finish(study, story, 0)
        cells = cells_of(study, story).values()
        assert {c.setting for c in cells if c.role == "confirm" and c.remedies} == {"rho=0.2"}
        worse = Story(lambda cell: 80.0 - quality(cell))
        finish(study, worse, 0)
        cells = cells_of(study, worse).values()
        assert {c.setting for c in cells if c.role == "confirm" and c.remedies} == {"rho=0.5"}


def test_another_study_refuses_a_measure_of_two_models(
    tmp_path: Path, cache: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["experiment=gap", "measure=[slice]", cache]) == 2
    assert capsys.readouterr().err == "lbdist: measure=slice: must be a measure of one model\n"


def test_the_study_ends_in_its_figures(copied: Path, cache: str) -> None:
    """At the models of a finished study, so that nothing is trained."""
    storage = copied
    small = ["measure.slice.count=7", "measure.curve.count=7", "measure.plane.count=4"]
    out = serially(storage, "experiment=landscape", *small, cache, shrunk=UNMEASURED)
    assert "epoch" not in out
    assert "Loss along paths from SB to the others" in out and "LB " in out
    rows = results.load(storage / "landscape")
    slices = rows[rows["measure"] == "slice"]
    assert len(slices) == 7 * 2 * 2 and slices["other_cell"].notna().all()
    # both ends are the models themselves, in the mode that the slices are in
    assert set(slices["position"]) == {-1, -0.5, 0, 0.5, 1, 1.5, 2}
    assert len(rows[rows["measure"] == "plane"]) == 2 * 16 * 2
    for name in ("slices-lb", "planes"):
        assert (storage / "landscape" / "figures" / f"{name}.png").stat().st_size > 10_000
