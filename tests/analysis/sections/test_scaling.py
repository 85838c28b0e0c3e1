"""Steps to a score, the critical batch and the verdict, on runs whose numbers are known."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from lbdist.analysis import critical, timings, to_score
from lbdist.analysis.runs import Runs
from lbdist.analysis.sections import break_even, critical_batch, throughput
from lbdist.analysis.sections.break_even import Clock
from tests.support.rows import CRITICAL, SIZES, frame, scaled, steady, timing


def test_steps_to_a_score_are_read_off_the_curve() -> None:
    data = to_score.points(Runs(frame(scaled())))
    found = to_score.reached(data, 80.0)
    for name, batch in SIZES.items():
        for seed in range(3):
            assert found[f"{name}-none-{seed}"] == pytest.approx(60 * (1 + CRITICAL / batch), rel=1e-9)
    assert to_score.reached(data, 95.0).isna().all()
    assert to_score.level(data, ["SB", "LB"]) == 90.0 and math.isnan(to_score.level(data, ["none"]))


def test_the_critical_batch_is_found_again() -> None:
    data = to_score.points(Runs(frame(scaled())))
    fit = critical.by_steps(critical.curves(data, [80.0]), 80.0)
    assert fit is not None and fit.critical == pytest.approx(CRITICAL, rel=1e-6) and fit.inside
    assert fit.least == pytest.approx(60, rel=1e-6) and fit.low <= fit.critical <= fit.high
    # all batches are far above the critical one
    beyond = to_score.critical_batch([1000, 2000, 4000] * 2, [50.0, 51.0, 50.5, 51.5, 49.5, 50.0])
    assert beyond is not None and not beyond.inside
    assert to_score.critical_batch([32, 64], [1.0, 2.0]) is None


def test_a_score_that_is_there_at_the_first_look_gives_a_bound_and_no_critical_batch() -> None:
    """SB is at 3.2 % after its first epoch, and LB at 1 %."""
    runs = Runs(frame(scaled()))
    data = to_score.points(runs)
    found = critical.curves(data, [3.0, 80.0])
    early = {(row["label"], row["goal"]) for _, row in found.iterrows() if row["early"]}
    assert early == {("SB", 3.0)} and critical.by_steps(found, 3.0) is None
    goals = critical.targets(data)
    assert min(goals) > float(to_score.first(data).max()) and max(goals) == to_score.level(data, SIZES)
    steps, _ = critical_batch.sections(runs, [3.0, 80.0])
    assert steps.tables[0].rows[0][2].text == "≤ 10" and steps.tables[0].rows[0][3].text == "248"


def test_branches_keep_up_until_one_is_above_the_tolerance_or_diverges() -> None:
    losses = {32: 0.50, 64: 0.45, 128: 0.505, 256: 0.52, 512: 0.40}

    def branch(batch: int, seed: int, diverged: int = 0):
        common = {"experiment": "scaling", "network": "mlp", "data": "mnist1d", "method": f"batch {batch}",
                  "cell": f"branch-{batch}-{seed}", "remedy": "none", "seed": seed, "role": "branch",
                  "origin_epoch": 5, "origin_cell": "sb", "global_batch_size": batch,
                  "num_workers": 1}  # fmt: skip
        values = {"steps": 10, "diverged": diverged, "seconds": 1.0, "gradient_evaluations": 10}
        rows = [{"metric": k, "value": v} for k, v in values.items()]
        rows.append({"metric": "loss", "split": "train", "value": losses[batch] + 0.1 * seed})
        return [{**common, **row} for row in rows]

    def batch_of(tolerance: float, failed: int | None = None) -> tuple[int, bool]:
        lost = (failed, 1)
        rows = [r for b in losses for s in (0, 1) for r in branch(b, s, int((b, s) == lost))]
        found = critical.branches(Runs(frame(rows)), tolerance)
        assert list(found["epoch"]) == [5]
        return int(found["batch"][0]), bool(found["most"][0])

    assert batch_of(0.01) == (128, False)  # not 512, behind one that does not
    assert batch_of(0.001) == (64, False)
    assert batch_of(0.03) == (512, True)
    assert batch_of(0.03, failed=256) == (128, False)


def test_the_time_of_a_run_whose_batch_grows_is_that_of_its_steps() -> None:
    rows = pd.DataFrame({"cell": "g", "global_batch_size": 320, "epoch": [1, 2], "steps": [100, 10],
                         "batch": [32.0, 320.0]})  # fmt: skip
    steps = {("", 32): 0.1, ("", 320): 0.4, ("LB + growth", 320): 0.8}
    assert list(to_score.seconds(rows, steps, "LB + growth", 320)) == pytest.approx([20.0, 28.0])
    assert to_score.seconds(rows, {}, "LB + growth", 320).isna().all()


def test_the_verdict_is_appendix_cs_inequality() -> None:
    """f_SB = 0.2 and B_SB / B_LB = 0.1 give 1/2 where LB's efficiency is 1 (the paper's example)."""
    rows = [r for seed in range(3) for r in steady("SB", 32, seed)]
    rows += [r for seed in range(3) for r in steady("LB", 320, seed)]
    data = to_score.points(Runs(frame(rows)))
    workers, sample = 10, 1e-4
    one = 32 * sample / (workers * 0.2)
    clock = Clock(workers, {("", 32): one, ("", 320): 320 * sample / workers}, alone=32 * sample)
    (verdict,) = break_even.verdicts(data, clock, 80.0)
    assert verdict.bound == pytest.approx(0.5) and verdict.paper == pytest.approx(0.5)
    ratio = (1 + CRITICAL / 320) / (1 + CRITICAL / 32)
    assert verdict.steps.mean == pytest.approx(ratio) and verdict.runs == (3, 3)
    assert verdict.faster.mean == pytest.approx(verdict.bound / verdict.steps.mean)
    assert (verdict.faster.mean > 1) is (verdict.steps.mean < verdict.bound)
    assert verdict.small == pytest.approx(one * 60 * (1 + CRITICAL / 32), rel=1e-6)


def test_the_sections_say_what_was_measured_and_what_is_the_models() -> None:
    runs = Runs(frame(scaled()))
    model = timings.model(runs)
    assert model is not None
    verdict, times = break_even.sections(runs, model, [64])
    text = " ".join(verdict.sentences)
    assert "LB takes 0.32 of SB's steps; on 2 workers it is" in text
    assert "LB is faster than SB for every P that was timed (1 and 2)" in text
    assert "By the model, with as many of P workers as are best for each, LB is faster from P = 64 on" in text
    assert [table.name for table in times.tables] == ["break_even", "break_even_model"]
    assert (
        "not measured" in times.tables[1].title and "nothing there was measured" in verdict.figures[0].caption
    )
    measured, modelled = throughput.sections(
        runs, model, [64], {"fast": {"seconds": 1e-6, "bytes_per_second": 1e11}}
    )
    assert measured.tables[0].note.endswith("Timed on a CPU in float32.")
    assert "The stopwatch changes a step by 0.4 %" in " ".join(measured.sentences)
    assert "of 8 configurations, each left out in turn" in " ".join(modelled.sentences)
    links = {row[0].text for row in modelled.tables[-1].rows}
    assert links == {"measured, tree", "measured, ring", "fast"}
    for section in (verdict, measured, modelled, *critical_batch.sections(runs)):
        for figure in section.figures:
            figure.draw()


def test_a_score_that_lb_does_not_come_to_has_no_time() -> None:
    rows = [r for seed in range(3) for r in steady("SB", 32, seed)]
    rows += [r for seed in range(3) for r in steady("LB", 320, seed, top=60.0 + seed)]
    rows += timing("SB", 32, 1, 0.003) + timing("LB", 320, 1, 0.005)
    runs = Runs(frame(rows))
    verdict, _ = break_even.sections(runs)
    text = " ".join(verdict.sentences)
    assert "To 60.00 %, which every run of SB and LB reaches, LB takes" in text
    assert "Every run of SB reaches 90.00 %, but 0 of 3 of LB: there is no time to compare." in text
    assert timings.model(runs) is not None  # two batches on one worker
