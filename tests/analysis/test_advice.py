"""What the advisor makes of brief runs whose numbers are known."""

from __future__ import annotations

import math

import pytest

from lbdist.analysis.advice import Branch, Timed, advise, most_share
from lbdist.analysis.runs import Runs
from lbdist.analysis.sections import recommendation
from tests.support.rows import frame

BATCHES = (32, 64, 128, 256)


def timed(*, fixed: float = 0.01, sample: float = 1e-4, workers: int = 2) -> list[Timed]:
    """Steps on one worker and on several, the latter with half the fixed part."""
    alone = [Timed(b, 1, fixed + sample * b, 1e9 + 1e6 * b, 16e9) for b in BATCHES]
    return alone + [Timed(b, workers, fixed / 2 + sample * b, 1e9 + 5e5 * b, 16e9) for b in BATCHES]


def branches(**losses: list[float | None]) -> list[Branch]:
    return [
        Branch(batch, rule, seed, None if loss is None else loss + seed)
        for rule, found in losses.items()
        for batch, loss in zip(BATCHES, found, strict=True)
        for seed in (0, 1)
    ]


def told(timings: list[Timed], tried: list[Branch], tolerance: float = 0.01, slack: float = 0.1):
    return advise(timings, tried, small=32, tolerance=tolerance, slack=slack)


def test_the_fastest_batch_that_keeps_up_is_taken_with_its_best_rule() -> None:
    found = told(timed(), branches(none=[1.0, 1.0, 1.1, 1.5], sqrt=[1.0, 1.2, 0.99, 1.3]))
    assert (found.batch, found.rule, found.workers) == (128, "sqrt", 2)
    assert [option.keeps_up for option in found.options] == [True, True, True, False]
    assert [option.rule for option in found.options] == ["none", "none", "sqrt", "sqrt"]
    rate = 128 / (0.005 + 0.0128)
    assert found.options[2].rate == pytest.approx(rate) and found.options[2].rises["sqrt"].n == 2


def test_a_larger_batch_that_is_hardly_faster_is_not_worth_it() -> None:
    level = branches(none=[1.0] * 4)
    assert told(timed(fixed=1e-9), level).batch == 32
    assert told(timed(), level, slack=0.0).batch == 256
    assert told(timed(), level, slack=0.2).batch == 128


def test_more_workers_are_not_taken_where_they_are_not_faster() -> None:
    slower = [Timed(item.batch, item.workers, item.workers * (item.seconds or 0)) for item in timed()]
    found = told(slower, branches(none=[1.0] * 4))
    assert found.workers == 1 and {option.workers for option in found.options} == {1}
    assert told(timed(), branches(none=[1.0] * 4)).workers == 2


def test_a_batch_behind_one_that_does_not_keep_up_is_not_taken() -> None:
    found = told(timed(), branches(none=[1.0, 1.2, 1.0, 1.0]))
    assert found.batch == 32 and [option.keeps_up for option in found.options] == [True, False, False, False]


def test_what_diverged_or_failed_keeps_up_with_nothing() -> None:
    tried = branches(none=[1.0, None, 1.0, 1.0], sqrt=[1.0, 1.0, None, 0.5])
    found = told(timed(), tried)
    assert [option.rule for option in found.options] == ["none", "sqrt", "none", "sqrt"]
    assert found.batch == 256
    nothing = told(timed(), branches(none=[None] * 4))
    assert not nothing.measured and nothing.batch == 32
    untimed = told([Timed(b, 1, None) for b in BATCHES], branches(none=[1.0] * 4))
    assert not untimed.measured and untimed.batch == 32 and math.isnan(untimed.most_share)


def test_the_memory_limit_is_where_the_line_comes_to_nine_tenths() -> None:
    assert most_share(timed()) == pytest.approx((0.9 * 16e9 - 1e9) / 1e6)
    flat = [Timed(b, 1, 1.0, 1e9, 16e9) for b in BATCHES]
    assert math.isnan(most_share(flat))
    noise = [Timed(b, 1, 1.0, 1e9 + 1e7 * (b % 3), 16e9) for b in BATCHES]
    assert math.isnan(most_share(noise))


def run(remedy: str, setting: str, seed: int, score: float, batch: int = 128):
    name, role, remedy = ("SB", "search", "none") if remedy == "SB" else ("LB", "advised", remedy)
    common = {"experiment": "advise", "network": "mlp", "data": "mnist1d", "method": name, "seed": seed,
              "cell": f"{name}{remedy}{setting}{seed}", "remedy": remedy, "setting": setting,
              "role": role,
              "global_batch_size": batch, "num_workers": 1}  # fmt: skip
    values = {"steps": 10, "diverged": 0, "seconds": 1.0, "gradient_evaluations": 10}
    rows = [{"metric": "accuracy", "split": "validation", "value": score}]
    return [{**common, **row} for row in rows + [{"metric": k, "value": v} for k, v in values.items()]]


def test_the_section_says_what_to_take_and_a_remedy_only_where_one_gains() -> None:
    found = told(timed(), branches(sqrt=[1.0, 1.0, 1.0, 1.3]))
    scores = {
        ("none", ""): 70.0,
        ("augmentation", "strength=1"): 76.0,
        ("robust", "rho=0.2"): 69.0,
        ("SB", ""): 73.0,
    }
    rows = [r for (name, s), v in scores.items() for k in range(3) for r in run(name, s, k, v + 0.2 * k)]
    shown = recommendation.section(Runs(frame(rows)), found, 2e-3)
    text = " ".join(shown.sentences)
    assert text.startswith(
        "Take a global batch of 128 on 2 workers (64 each), a learning rate by lr_rule=sqrt (0.002)"
    )
    assert "and augmentation (strength=1), which gains 6.00 points on none" in text
    assert "Batch 256 no longer keeps up." in text and "Memory holds about 13,400 samples per worker." in text
    assert [row[0].text for row in shown.tables[1].rows] == ["augmentation", "SB", "none", "robust"]
    assert "Without a remedy it reaches 70.20 % on the validation split, SB 73.20 %." in text
    even = [r for k in range(3) for name in ("none", "robust") for r in run(name, "", k, 70.0 + k)]
    text = " ".join(recommendation.section(Runs(frame(even)), found, None).sentences)
    assert "and no remedy: none clearly gains." in text
    stay = told(timed(), branches(none=[1.0, 2.0, 2.0, 2.0]))
    assert "Batch 64 no longer keeps up." in " ".join(
        recommendation.section(Runs(frame(even)), stay, None).sentences
    )
