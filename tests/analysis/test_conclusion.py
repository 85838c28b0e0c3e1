"""Sentences that know the evidence below them: training loss, intervals, chance, edges, convergence."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lbdist.analysis.advice import Advice, Option, Timed, most_share
from lbdist.analysis.claims import HOLDS, OPEN, PART, claims
from lbdist.analysis.derived import ratio
from lbdist.analysis.runs import Runs, Score
from lbdist.analysis.sections import leaderboard, reading, recommendation
from lbdist.analysis.statistics import summarise
from tests.support.rows import frame, sharpness, spread, study, training


def runs_of(**losses: tuple[float, float]) -> list[dict[str, Any]]:
    """SB, LB and LB to SB's loss: of each the mean test accuracy and the mean training loss, over 3 seeds."""
    rows = []
    for name, (accuracy, loss) in losses.items():
        for seed, (score, own) in enumerate(
            zip(spread(accuracy, 0.5, 3), spread(loss, 0.05, 3), strict=True)
        ):
            role = "equal_loss" if name == "equal" else "confirm"
            cell = training("LB" if name == "equal" else name, seed, score, role=role)
            rows += [*cell, {**cell[0], "metric": "loss", "split": "train", "value": own}]
    return rows


def said(rows: list[dict[str, Any]] | pd.DataFrame, score: Score | None = None) -> list[str]:
    runs = Runs(rows if isinstance(rows, pd.DataFrame) else frame(rows), score)
    return leaderboard.conclusion(runs, leaderboard.leaderboard(runs))


def verdict(rows: list[dict[str, Any]], text: str = "LB generalises worse than SB") -> str:
    return next(claim.verdict for claim in claims(Runs(frame(rows))) if claim.text.startswith(text))


def test_lb_that_is_undertrained_is_not_said_to_generalise_worse() -> None:
    closed = runs_of(SB=(72.0, 3.8), LB=(64.6, 8.5), equal=(72.4, 3.8))
    assert said(closed)[0].startswith(
        "LB is undertrained, so that it loses 7.4 points of test accuracy to SB"
    )
    assert "its training loss is 8.50, SB's 3.80, and trained to SB's it ends" in said(closed)[0]
    assert verdict(closed) == PART
    still = runs_of(SB=(72.0, 3.8), LB=(64.6, 8.5), equal=(68.0, 3.8))
    assert said(still)[0].startswith("LB loses 7.4 points") and "it still loses 4.0" in said(still)[0]
    assert verdict(still) == HOLDS
    short = runs_of(SB=(72.0, 3.8), LB=(64.6, 8.5), equal=(66.0, 6.0))  # its loss is not SB's either
    for rows in (runs_of(SB=(72.0, 3.8), LB=(64.6, 8.5)), short):
        assert "LB loses 7.4" in said(rows)[0] and "may be undertrained" in said(rows)[0]
        assert verdict(rows) == HOLDS
    even = runs_of(SB=(72.0, 3.8), LB=(64.6, 3.9), equal=(72.4, 3.8))
    assert "training loss" not in said(even)[0] and verdict(even) == HOLDS


def measured(sb: list[float], lb: list[float], converged: bool = True) -> list[dict[str, Any]]:
    rows = []
    for name, values in (("SB", sb), ("LB", lb)):
        for seed, value in enumerate(values):
            cell = training(name, seed, 70.0 + seed)
            rows += [*cell, sharpness(cell, value, converged=converged or seed > 0)]
    return rows


POSITIVE = st.lists(st.floats(0.1, 100.0), min_size=1, max_size=5)


@given(POSITIVE, POSITIVE)
@settings(max_examples=12, deadline=None)
def test_the_sentence_and_the_claim_say_the_same_of_a_ratio(sb: list[float], lb: list[float]) -> None:
    """By the same numbers: seeds that both have."""
    rows = measured(sb, lb)
    text = next(line for line in said(rows) if line.startswith("LB is "))
    found = ratio(Runs(frame(rows)).with_headline, "phi", "LB", "SB")
    judged = verdict(rows, "LB is sharper: full space, ε 1e-3")
    settled = "not clearly" not in text and "settle nothing" not in text
    assert settled == (not math.isnan(found.low) and not found.low <= 1 <= found.high)
    assert settled == (judged != OPEN)
    if settled:
        assert ("sharp as" in text) == (judged == HOLDS)


def test_maxima_that_did_not_converge_are_counted_where_they_are_compared() -> None:
    rows = measured([1.0, 1.1, 1.2], [9.0, 9.5, 9.9], converged=False)
    assert "2 of 6 maxima did not converge" in " ".join(said(rows))
    assert "did not converge" not in " ".join(said(measured([1.0, 1.1, 1.2], [9.0, 9.5, 9.9])))


def test_what_is_at_chance_is_said_in_the_leaderboard_and_in_the_advice() -> None:
    rows = runs_of(SB=(12.0, 2.3), LB=(10.0, 2.3))
    assert any("SB and LB are at chance: up to 14.0 %" in line for line in said(rows, Score(chance=14.0)))
    assert not any("chance:" in line for line in said(rows, Score(chance=9.0)))
    assert not any("chance:" in line for line in said(rows))
    by_seed = summarise([-0.11 - 0.93, -0.11, -0.11 + 0.93])
    options = [
        Option(32, "none", {"none": summarise([0.0] * 3)}, 1, 1000.0, 1e9, True),
        Option(64, "none", {"none": by_seed}, 1, 2000.0, 1e9, True),
    ]
    advised = [
        {**row, "role": "search" if name == "SB" else "advised"}
        for name in ("SB", "LB")
        for row in training(name, 10_000, 11.0, role="search")
    ]
    found = Advice(64, "none", 1, options, math.nan, True, 0.01)
    runs = Runs(frame([*rows, *advised]), Score(chance=14.0))
    lines = recommendation.section(runs, found).sentences
    assert lines[0].startswith("Nothing can be recommended by these runs: the best of them reaches 11.00 %")
    assert any("0.110 ± 0.930 below" in line for line in lines)
    assert any(line.startswith("That is not settled: 3 seeds do not tell") for line in lines)


@pytest.mark.parametrize(("chosen", "edge"), [("rho=0.1", True), ("rho=0.2", False), ("rho=0.5", True)])
def test_a_search_that_ends_at_its_edge_is_said_where_its_best_is_used(chosen: str, edge: bool) -> None:
    rows = runs_of(SB=(72.0, 1.0), LB=(65.0, 1.0))
    for seed in range(3):
        rows += training("robust", seed, 70.0 + 0.1 * seed, setting=chosen)
    for setting in ("rho=0.1", "rho=0.2", "rho=0.5"):
        rows += training("robust", 10_000, 68.0, role="search", setting=setting)
    text = " ".join(said(rows))
    assert ("is at the edge of its search" in text) == edge
    if edge:
        assert f"({chosen} of 0.1 to 0.5)" in text


@given(st.lists(st.floats(0, 100), min_size=2, max_size=6))
@settings(max_examples=50, deadline=None)
def test_an_interval_of_a_share_is_one_of_shares(values: list[float]) -> None:
    found = Score().summarise(values)
    assert 0 <= found.low <= found.mean + 1e-9 and found.mean <= found.high + 1e-9 and found.high <= 100
    assert Score("r2", "").summarise([0.9, 1.0]).high > 1


def test_memory_that_does_not_grow_sets_no_limit() -> None:
    noise = np.random.default_rng(0).normal(0, 1e3, 4).cumsum()
    flat = [
        Timed(b, 1, 1.0, 1.484e9 + e, 10e9) for b, e in zip((32, 60, 90, 120), sorted(noise), strict=True)
    ]
    assert math.isnan(most_share(flat))
    assert most_share([Timed(b, 1, 1.0, 1e9 + 1e6 * b, 10e9) for b in (32, 64, 256)]) == pytest.approx(8000)


def test_words_are_explained_and_nothing_is_named_that_was_not_measured() -> None:
    rows = study(("SB", "LB"), measure=False)
    words = reading.words(Runs(rows))
    assert [line.partition(":")[0] for line in words] == ["SB", "LB"] and "32 samples" in words[0]
    assert reading.words(Runs(study(("SB", "LB"))))[-1].startswith("φ: sharpness")
    section = leaderboard.section(Runs(rows))
    shown = [figure.title for figure in section.figures] + [h for t in section.tables for h in t.lines]
    assert not any("φ" in text or "flatness" in text for text in [*shown, *(t.note for t in section.tables)])
    heads = [line for table in section.tables for line in table.lines]
    assert {"test accuracy %", "gap to SB, points", "seconds"} <= set(heads)
