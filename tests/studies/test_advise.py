"""The study of the advisor."""

from __future__ import annotations

import pytest

from lbdist.errors import InputError
from lbdist.studies.base import cells_of
from lbdist.studies.search import SEARCH_SEED
from tests.support.plans import make_study


def test_the_advisor_tries_remedies_at_the_batch_that_its_branches_favour() -> None:
    study = make_study(
        "experiment=advise", "seeds=2", "epochs=4", "study.epochs=[1,2]", "remedy=[none,robust]"
    )
    finals: dict[str, dict[str, float]] = {}
    for cell in cells_of(study, lambda cell: finals.get(cell.id)).values():  # SB and what is timed
        size, workers = cell.global_batch_size, cell.asked_workers
        step = {"step_seconds": (0.01 + 1e-4 * size) * (2 if workers == 8 else 1)}
        finals[cell.id] = step if cell.procedure else {"test_accuracy": 50.0, "train_loss": 1.0}
    branches = [cell for cell in cells_of(study, lambda cell: finals.get(cell.id)).values() if cell.origin]
    assert {(c.origin.epoch, c.epochs) for c in branches if c.origin} == {(2, 1)}  # the last before the end
    assert len(branches) == 2 * (1 + 3 * 5)  # seeds; one at SB's batch, three rules at five others
    for cell in branches:
        good = cell.global_batch_size <= 256 and (cell.rule == "sqrt" or cell.global_batch_size == 32)
        finals[cell.id] = {"train_loss": 0.5 if good else 0.6}
    advised = [c for c in cells_of(study, lambda c: finals.get(c.id)).values() if c.role == "advised"]
    assert {c.global_batch_size for c in advised} == {256}
    assert all(c.optimizer["lr"] == pytest.approx(1e-3 * 8**0.5) for c in advised)
    assert {(c.remedy, c.setting) for c in advised} == {
        ("none", ""),
        ("robust", "rho=0.2"),
        ("robust", "rho=0.5"),
    }
    assert all(c.validation_fraction and c.seed >= SEARCH_SEED for c in advised)
    for cell in cells_of(study, lambda c: finals.get(c.id)).values():  # what does not fit is not tried
        if cell.procedure and cell.global_batch_size == 1000 and cell.num_workers == 1:
            finals[cell.id] = {"out_of_memory": 1.0}
    known = cells_of(study, lambda cell: finals.get(cell.id)).values()
    assert {c.global_batch_size for c in known if c.origin} == {32, 64, 128, 256, 512}
    for wrong in ("study.rules=[cubic]", "study.rules=[]", "study.slack=1", "study.epochs=[4]"):
        with pytest.raises(InputError, match=f"^{wrong.partition('=')[0]}="):
            make_study("experiment=advise", "epochs=4", wrong)
