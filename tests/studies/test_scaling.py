"""The study of scaling: what is timed, what is trained, where runs branch off, what is refused."""

from __future__ import annotations

import pytest

from lbdist.errors import InputError
from lbdist.studies.base import cells_of, whole
from lbdist.studies.scaling import Scaling
from tests.support.plans import Story, finish, make_study, quality


def test_scaling_times_each_batch_and_remedy_alone_on_all_workers() -> None:
    study = make_study("experiment=scaling", "remedy=[none,growth]", "seeds=2", "study.workers=[1,2,64]")
    cells = list(cells_of(study, whole(study)).values())
    timed = [cell for cell in cells if cell.procedure and cell.procedure["name"] == "timing"]
    sizes = [32, 64, 128, 256, 400]
    assert {(c.num_workers, c.global_batch_size) for c in timed} == {
        (workers, size) for workers in (1, 2, 64) for size in sizes if size >= workers
    }
    assert {c.num_workers for c in timed if c.remedy == "growth"} == {1, 2, 64}
    assert all(c.alone and c.role == "timing" and c.seed == 0 for c in timed)
    calls = [cell for cell in cells if cell.procedure and cell.procedure["name"] == "collectives"]
    assert [cell.num_workers for cell in calls] == [2, 64]
    trained = {cell.global_batch_size for cell in cells if cell.role == "confirm" and cell.remedy == "none"}
    assert trained == set(sizes)
    two = study.within(2)
    assert two.left_out() == ["steps are not timed on 64 workers, since there is room for 2"]
    assert max(cell.asked_workers for cell in cells_of(two, whole(two)).values()) == 2
    assert not study.left_out()


def test_what_a_step_takes_does_not_depend_on_how_long_is_trained() -> None:
    ids = [
        {c.id for c in cells_of(study, whole(study)).values() if c.procedure}
        for study in (make_study("experiment=scaling", *more) for more in ([], ["epochs=7", "seeds=1"]))
    ]
    assert ids[0] == ids[1]


def test_branches_begin_at_sbs_models_with_a_scaled_rate_and_see_as_many_samples() -> None:
    study = make_study("experiment=scaling", "remedy=none", "study.epochs=[2,10,20]", "seeds=1")
    story = Story(quality)
    assert not any(cell.origin for cell in cells_of(study, story).values())  # SB is not there yet
    finish(study, story, 0)
    cells = list(cells_of(study, story).values())
    (small,) = [c for c in cells if c.method == "SB" and c.role == "confirm"]
    branches = [cell for cell in cells if cell.origin]
    assert small.keep == {2, 10}
    assert {(c.origin.cell, c.origin.epoch) for c in branches if c.origin} == {(small.id, 2), (small.id, 10)}
    assert {c.epochs for c in branches} == {2} and {c.role for c in branches} == {"branch"}
    rates = {c.global_batch_size: c.optimizer["lr"] for c in branches}
    assert rates == pytest.approx({b: 1e-3 * (b / 32) ** 0.5 for b in (32, 64, 128, 256, 400, 800, 1600)})
    at = [(m.at[0].cell.method, m.at[0].epoch) for m in study.measurements(story)]
    assert sorted(epoch for method, epoch in at if method == "SB" and epoch) == [2, 10]
    assert len(at) == 2 + 5  # the noise scale along SB, and at every end


def test_sizes_double_from_sb_to_lb_or_are_those_that_are_named() -> None:
    study = make_study("experiment=scaling")
    assert isinstance(study, Scaling) and study.sizes() == [32, 64, 128, 256, 400]
    named = make_study("experiment=scaling", "study.batches=[50,0.05]")
    assert isinstance(named, Scaling) and named.sizes() == [32, 50, 200, 400]


@pytest.mark.parametrize(
    "wrong",
    [
        "study.workers=[2]",
        "study.workers=[1,0]",
        "study.predicted=[0]",
        "study.branch_length=0",
        "study.branch_rule=cubic",
        "study.tolerance=-1",
        "study.batches=[5000]",
    ],
)
def test_settings_that_do_not_fit_are_refused(wrong: str) -> None:
    with pytest.raises(InputError, match=f"^{wrong.partition('=')[0]}="):
        make_study("experiment=scaling", wrong)


def test_a_link_has_two_numbers() -> None:
    link = "study.interconnects.slow={seconds:1.0}"
    with pytest.raises(InputError, match=r"^study\.interconnects\.slow="):
        make_study("experiment=scaling", f"+{link}")
