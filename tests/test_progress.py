"""What is said while a study runs: plain lines, seldom, with an estimate from the pace of what runs."""

from __future__ import annotations

import re

import pytest

from lbdist import progress
from lbdist.plan import Cell, Measurement, Point
from lbdist.progress import Progress
from lbdist.studies.base import Final, cells_of, expected_of
from lbdist.tuning.schedule import Job
from tests.support.plans import make_study


class Clock:
    """A clock that stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress, "time", made)
    return made


CELLS = [make_study("epochs=10").plan.cell("SB", seed=seed) for seed in range(4)]


def cells() -> list[Cell]:
    return CELLS


def report(epoch: int) -> dict[str, float]:
    return {"epoch": epoch, "running_loss": 1 / epoch}


def test_epochs_are_said_at_most_every_few_seconds(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(cells, [], lambda cell: 1.0) as shown:
        job = Job((CELLS[0],))
        shown.began(job)
        for epoch in range(1, 10):
            clock.now += 1
            shown.ran(job, report(epoch))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 and lines[0].startswith("SB seed 0: epoch 5 of 10, loss 0.2")


def test_the_time_left_follows_from_the_pace(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(cells, [], lambda cell: 1.0) as shown:
        job = Job((CELLS[0],))
        shown.began(job)
        clock.now = 100  # a slow start is no part of the pace
        for epoch in range(1, 11):
            clock.now += 2
            shown.ran(job, report(epoch))
        shown.ended(job, {"test_accuracy": 71.5, "seconds": 20.0})
    lines = capsys.readouterr().out.splitlines()
    # an epoch takes 2 s, 30 are left
    assert lines[-1] == "[1/4] SB seed 0: test accuracy 71.5 %, 20.0 s, about 60 s of training left"
    assert not re.search(r"about \d{4}", "".join(lines))


def test_a_group_says_that_it_starts_and_has_a_pace_of_its_own(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress(cells, [], lambda cell: 1.0) as shown:
        clock.now = 10
        group = Job((CELLS[0],), workers=2)
        shown.began(group)
        clock.now = 40
        shown.ran(group, report(1))
        shown.ended(group, {"test_accuracy": 50.0, "seconds": 1.0})
        single = Job((CELLS[1],))
        shown.began(single)
        for epoch in range(1, 11):
            clock.now += 1
            shown.ran(single, report(epoch))
        shown.ended(single, {"test_accuracy": 50.0, "seconds": 10.0})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "SB seed 0: 2 workers starting"
    assert lines[-1].endswith("about 20 s of training left")


def test_the_cells_of_a_group_follow_each_other(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(cells, [], lambda cell: 1.0) as shown:
        group = Job(tuple(CELLS[:2]), workers=2)
        shown.began(group)
        for epoch in [*range(1, 11), *range(1, 6)]:
            clock.now += 2
            shown.ran(group, report(epoch))
        clock.now += 9
        shown.ran(group, report(6))
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("SB seed 0: epoch ") for line in lines)
    assert lines[-1].startswith("SB seed 1: epoch 6 of 10") and "about 59 s of training left" in lines[-1]


def test_what_was_finished_before_is_not_told_again(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(cells, CELLS[:2], lambda cell: 1.0) as shown:
        shown.began(Job((CELLS[0],)))
        shown.ended(Job((CELLS[0],)), {"test_accuracy": 1.0})
        shown.began(Job((CELLS[2],)))
        shown.ended(Job((CELLS[2],)), {"error": "RuntimeError: no\nmore"})
        shown.began(Job((CELLS[3],)))
        shown.ended(Job((CELLS[3],)), {"diverged": 1.0})
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["[3/4] SB seed 2: failed: more", "[4/4] SB seed 3: diverged"]


def test_what_measuring_has_left_follows_from_what_is_left_to_evaluate(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    """The dear ones first: by their number alone, the rest would be thought as dear."""
    made = [Measurement({"_target_": "a.B"}, (Point(cell),)) for cell in CELLS]
    costs = dict(zip((one.id for one in made), (1.0, 30.0, 10.0, 10.0), strict=True))
    with Progress(cells, CELLS, lambda cell: 1.0) as shown:
        shown.begin_measurements(made, lambda measurement: costs[measurement.id])
        shown.measured(made[0], [{"value": 1.0}])
        clock.now = 60
        shown.measured(made[1], [{"value": 1.0}])
    assert capsys.readouterr().out.splitlines()[-1] == "[2/4] measurements, about 40 s left"


def test_measurements(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    made = [Measurement({"_target_": "a.B"}, (Point(cell),)) for cell in CELLS]
    with Progress(cells, CELLS, lambda cell: 1.0) as shown:
        shown.begin_measurements(made, lambda measurement: 1.0)
        clock.now = 30  # the processes start
        for measurement in made[:3]:
            shown.measured(measurement, [{"value": 1.0}])
            clock.now += 6
        shown.measured(made[3], [{"error": "ValueError: no"}])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "4 measurements to make"
    assert lines[-2] == "[3/4] measurements, about 6 s left"
    assert lines[-1] == "a.B of SB seed 3: ValueError: no"


@pytest.mark.parametrize("overrides", ["experiment=remedies", "experiment=advise", "experiment=gap"])
def test_what_results_bring_up_and_what_they_rule_out_is_counted(
    overrides: str, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a search, a training loss or the advisor comes to takes the place of what was assumed."""
    study = make_study(overrides, "seeds=2", "search.samples=2")
    found: dict[str, Final] = {}

    def done(cell: Cell) -> Final | None:
        return found.get(cell.id)

    with Progress(lambda: expected_of(study, done).values(), [], lambda cell: 1.0) as shown:
        while waiting := [cell for cell in cells_of(study, done).values() if done(cell) is None]:
            job = Job((waiting[0],))
            shown.began(job)
            clock.now += 5
            shown.ran(job, report(waiting[0].epochs))
            score = 0.1 * len(found)  # the last of a search is its best
            found[job.id] = {"validation_accuracy": score, "train_loss": 1 / (1 + score), "step_seconds": 1.0}
            shown.ended(job, found[job.id])
    lines = capsys.readouterr().out.splitlines()
    told = re.findall(r"\[(\d+)/(\d+)\]", "".join(lines))
    assert [int(done) for done, _ in told] == list(range(1, len(found) + 1))
    assert all(int(done) <= int(total) for done, total in told) and told[-1] == (str(len(found)),) * 2
    assert "left" not in lines[-1]
    assert progress.several(1, "measurement") == "1 measurement"
