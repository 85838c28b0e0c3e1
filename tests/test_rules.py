"""The learning-rate rules for the batch."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbdist.errors import InputError
from lbdist.rules import RULES, scaled
from lbdist.studies.base import cells_of, whole
from tests.support.plans import make_study

ADAM = {"_target_": "torch.optim.Adam", "lr": 1e-3, "betas": [0.9, 0.999], "eps": 1e-8}


@given(rule=st.sampled_from(RULES), first=st.integers(1, 3), second=st.integers(1, 3))
def test_two_steps_of_a_rule_are_one(rule: str, first: int, second: int) -> None:
    once = scaled(ADAM, rule, first * second, 1)
    twice = scaled(scaled(ADAM, rule, first, 1), rule, second, 1)
    for key in ("lr", "eps", "betas"):
        assert twice[key] == pytest.approx(once[key], rel=1e-9)
    assert scaled(once, rule, 1, first * second)["lr"] == pytest.approx(ADAM["lr"])
    assert once["_target_"] == ADAM["_target_"]


def test_the_rule_is_part_of_the_cell() -> None:
    found = {}
    for rule in RULES:
        study = make_study(
            "experiment=gap", "study.equal_loss=null", "seeds=1", "large_batch=128", f"lr_rule={rule}"
        )
        cells = list(cells_of(study, whole(study)).values())
        found[rule] = {cell.method: cell.optimizer for cell in cells}
    assert {rule: nodes["SB"]["lr"] for rule, nodes in found.items()} == dict.fromkeys(RULES, 1e-3)
    rates = {"none": 1e-3, "linear": 4e-3, "sqrt": 2e-3, "adam": 2e-3}
    assert {rule: nodes["LB"]["lr"] for rule, nodes in found.items()} == pytest.approx(rates)
    assert found["adam"]["LB"]["betas"] == pytest.approx([0.6, 0.996])
    assert found["sqrt"]["LB"]["betas"] == [0.9, 0.999]


def test_a_remedys_own_rate_stays() -> None:
    study = make_study("remedy=[none,robust]", "+remedy.robust.cell={optimizer:{lr:0.02}}", "lr_rule=linear")
    cells = cells_of(study, whole(study)).values()
    assert {cell.optimizer["lr"] for cell in cells if cell.remedy == "robust"} == {0.02}
    assert {cell.optimizer["lr"] for cell in cells if cell.remedy == "none"} == {0.001, 0.0125}


@pytest.mark.parametrize(
    ("node", "words"),
    [
        ({"lr": 1e-3}, r"^lr_rule=adam: must be none, or optimizer.betas given"),
        (ADAM, r"^optimizer.betas=\[0.9, 0.999\]: must be above 0.92 for a batch 12.5 times 32"),
    ],
)
def test_a_rule_that_does_not_fit_is_refused(node: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        scaled(node, "adam", 400, 32)
