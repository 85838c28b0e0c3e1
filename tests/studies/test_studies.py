"""Every shipped study without Ray: any order of completion, killed and resumed, gives its dry run's cells."""

from __future__ import annotations

from collections import Counter

import pytest

from lbdist.errors import InputError
from lbdist.plan import Cell, Origin
from lbdist.studies.base import Study, cells_of, whole
from lbdist.studies.comparison import Comparison
from lbdist.studies.paper import Paper
from lbdist.studies.search import SEARCH_SEED, best
from tests.support.plans import SHIPPED, Story, finish, make_study, quality


def asked(name: str) -> list[str]:
    """A study as shipped, but for the seeds of one that has many cells."""
    return [f"experiment={name}", "epochs=20", *(["seeds=1"] if name == "scaling" else [])]


def labels(cells: dict[str, Cell]) -> Counter[str]:
    """Cells by all that a dry run knows of them: not which setting the search will choose."""
    found = Counter[str]()
    for cell in cells.values():
        setting = cell.setting if cell.role == "search" else ""
        begun = cell.origin.epoch if cell.origin else 0
        found[
            f"{cell.role} {cell.method} {cell.remedy} {setting} {cell.seed} {begun} {sorted(cell.keep)}"
        ] += 1
    return found


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", SHIPPED)
def test_any_order_of_completion_gives_the_cells_of_the_dry_run(name: str, seed: int) -> None:
    study, story = make_study(*asked(name)), Story(quality)
    ran = finish(study, story, seed)
    assert set(ran.values()) == {1}
    cells = cells_of(study, story)
    assert set(ran) == set(cells)
    assert labels(cells) == labels(cells_of(study, whole(study)))
    measurements = [m.id for m in study.measurements(story)]
    assert (measurements or name == "benchmark") and len(set(measurements)) == len(measurements)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", SHIPPED)
def test_killed_and_resumed_it_runs_the_same_cells_and_none_twice(name: str, seed: int) -> None:
    study, undisturbed = make_study(*asked(name)), Story(quality)
    finish(study, undisturbed, seed=99)
    story, ran, kills = Story(quality), Counter[str](), 0
    while any(story(cell) is None for cell in cells_of(study, story).values()):
        ran += finish(make_study(*asked(name)), story, seed + kills, stop=0.5)
        kills += 1
    assert kills > 1 and set(ran.values()) == {1}
    assert cells_of(study, story).keys() == cells_of(study, undisturbed).keys()


def everything(study: Study) -> str:
    """All that a study holds, its parts and their plans included; but for cells, which are made once."""
    own = {key: value for key, value in vars(study).items() if key not in ("plan", "studies")}
    parts = {name: everything(part) for name, part in study.studies.items()}
    plan = {key: value for key, value in vars(study.plan).items() if key != "_made"}
    return repr((own, sorted(plan.items()), parts))


@pytest.mark.parametrize("name", SHIPPED)
def test_a_study_remembers_nothing(name: str) -> None:
    """Asked for hypothetical cells, or those of fewer devices, it goes on to say what one unasked does."""
    study, fresh, story = make_study(*asked(name)), make_study(*asked(name)), Story(quality)
    before = everything(study)
    few = study.within(1)
    for each in (study, few, study):
        cells_of(each, whole(each))
        assert len([m.id for m in each.measurements(whole(each))]) >= 0
    assert everything(study) == before
    finish(study, story, seed=5)
    assert everything(study) == before
    assert cells_of(study, story) == cells_of(fresh, story)
    assert [m.id for m in study.measurements(story)] == [m.id for m in fresh.measurements(story)]


def test_gap_and_remedies_share_sb_and_lb() -> None:
    gap, remedies = make_study("experiment=gap"), make_study("experiment=remedies")
    shared = cells_of(gap, whole(gap)).keys() & cells_of(remedies, whole(remedies)).keys()
    own = {cell.role for key, cell in cells_of(gap, whole(gap)).items() if key not in shared}
    assert len(shared) == 6 and own == {"equal_loss"}

    def measured(study: Study) -> set[str]:
        """What is measured once the shared cells are finished."""
        return {m.id for m in study.measurements(lambda cell: {"a": 0.0} if cell.id in shared else None)}

    assert measured(remedies) and measured(remedies) < measured(gap)  # of the subspaces one for each model
    assert measured(gap) == measured(make_study("experiment=remedies", "measure.sharpness.draws=5"))


def test_where_the_data_lie_is_no_part_of_a_cell() -> None:
    here, there = make_study("experiment=gap"), make_study("experiment=gap", "data.root=/elsewhere")
    assert cells_of(here, whole(here)).keys() == cells_of(there, whole(there)).keys()


# the comparison


def test_search_is_on_seeds_of_its_own_and_a_validation_split() -> None:
    study = make_study("search.seeds=2", "epochs=5", "search.epochs=0.5")
    cells = cells_of(study, whole(study)).values()
    for cell in cells:
        searching = cell.role == "search"
        assert (cell.seed >= SEARCH_SEED) == (cell.validation_fraction is not None) == searching
        assert cell.epochs == (3 if searching else 5)
    assert sum(cell.role == "search" for cell in cells) == 2 * 2 * 5


def test_the_best_setting_is_confirmed_over_fresh_seeds() -> None:
    study, story = make_study("remedy=[none,growth,robust]"), Story(quality)
    finish(study, story, 0)
    confirmed = {(c.remedy, c.setting) for c in cells_of(study, story).values() if c.role == "confirm"}
    assert confirmed == {("none", ""), ("robust", "rho=0.2"), ("growth", "stages=6")}


def test_failed_and_diverged_search_runs_are_not_chosen() -> None:
    lost = {"rho=0.2": None, "stages=3": None, "stages=6": None, "proximal=0.001": float("nan")}

    def score(cell: Cell) -> float | None:
        return lost[cell.setting] if cell.role == "search" and cell.setting in lost else quality(cell)

    study, story = make_study("remedy=[none,growth,robust,conservative]"), Story(score)
    finish(study, story, 0)
    confirmed = {c.remedy: c.setting for c in cells_of(study, story).values() if c.role == "confirm"}
    # rho=0.2 would have been the best; growth has no run to choose from
    assert confirmed == {"none": "", "robust": "rho=0.5", "conservative": "proximal=0.1"}


def test_best() -> None:
    cells = [make_study().plan.cell("LB", seed=seed) for seed in range(4)]
    trials = {"a": cells[:2], "b": cells[2:]}
    scores = {cells[0].id: 1.0, cells[1].id: 5.0, cells[2].id: 3.0}

    def done(cell: Cell) -> dict[str, float] | None:
        return {"accuracy": scores[cell.id]} if cell.id in scores else None

    assert best(trials, done, "accuracy") is None  # one is not over
    scores[cells[3].id] = 3.0
    assert best(trials, done, "accuracy") == "a"  # equal means: the first
    scores[cells[3].id] = 4.0
    assert best(trials, done, "accuracy") == "b"
    assert best(trials, lambda cell: {}, "accuracy") is None  # all failed


def test_the_check_of_workers_is_in_no_mean_and_may_be_a_cell_of_its_own() -> None:
    study = make_study("experiment=gap", "study.equal_loss=null", "study.check_workers=2", "seeds=2")
    cells = list(cells_of(study, whole(study)).values())
    assert [(c.method, c.seed, c.role, c.num_workers) for c in cells] == [
        ("SB", 0, "confirm", "auto"),
        ("SB", 1, "confirm", "auto"),
        ("LB", 0, "confirm", "auto"),
        ("LB", 1, "confirm", "auto"),
        ("LB", 0, "workers", 2),
    ]
    assert {m.at[0].cell.role for m in study.measurements(whole(study))} == {"confirm"}
    same = make_study(
        "experiment=gap", "study.equal_loss=null", "study.check_workers=2", "num_workers=2", "seeds=2"
    )
    assert {c.role for c in cells_of(same, whole(same)).values()} == {"confirm"}


def test_of_the_run_in_another_precision_the_sharpness_is_measured_and_no_more() -> None:
    study = make_study("experiment=gap", "study.equal_loss=null", "study.check_precision=float32", "seeds=1",
                       "measure=[sharpness,distance]")  # fmt: skip
    found: dict[str, list[str]] = {}
    for measurement in study.measurements(whole(study)):
        found.setdefault(measurement.at[0].cell.role, []).append(measurement.measure["name"])
    assert set(found["confirm"]) == {"sharpness", "distance"} and found["precision"] == ["sharpness"]


def test_a_combination_takes_the_setting_chosen_for_each_member_alone() -> None:
    study = make_study("remedy=[none,growth,robust]", "combinations=[[growth,robust]]")
    story = Story(quality)
    finish(study, story, 1)
    (together,) = {c.label_without_seed for c in cells_of(study, story).values() if "+" in c.remedy}
    assert together == "LB + growth+robust stages=6, rho=0.2"
    cell = next(c for c in cells_of(study, story).values() if "+" in c.remedy)
    assert [node["_target_"].rpartition(".")[2] for node in cell.remedies] == ["Growth", "Robust"]


@pytest.mark.parametrize("names", ["[[robust]]", "[[robust,robust]]", "[[robust,none]]", "[[robust,sam]]"])
def test_a_wrong_combination_is_refused(names: str) -> None:
    with pytest.raises(InputError, match=r"^combinations=\["):
        make_study("remedy=[none,growth,robust]", f"combinations={names}")


def test_a_remedy_may_set_fields_of_its_cells() -> None:
    fields = "{optimizer:{lr:0.02},epochs:7,ghost_batch_size:8}"
    study = make_study("remedy=[none,robust]", f"+remedy.robust.cell={fields}")
    cells = cells_of(study, whole(study)).values()
    found = {
        (c.remedy, c.optimizer["lr"], c.epochs, c.ghost_batch_size) for c in cells if c.role == "confirm"
    }
    assert found == {("none", 1e-3, 20, None), ("robust", 0.02, 7, 8)}
    assert all("cell" not in node for cell in cells for node in cell.remedies)


def test_share_and_count_of_the_large_batch_are_the_same() -> None:
    share, count = make_study("large_batch=0.1"), make_study("large_batch=400")
    assert share.plan.large_batch == count.plan.large_batch == 400
    assert cells_of(share, whole(share)).keys() == cells_of(count, whole(count)).keys()


def test_what_is_measured_where() -> None:
    study = make_study("measure.sharpness.draws=3", "measure=[sharpness,distance]", "remedy=[none,robust]")
    assert isinstance(study, Comparison)
    plan = study.plan
    found = {}
    for cell in (plan.cell("SB", seed=0), plan.cell("LB", {"robust": {"rho": 0.2}}, seed=0)):
        nodes = list(plan.measured(cell))
        found[cell.remedy] = Counter(str(node["name"]) for node in nodes)
        for node in nodes:
            if node["name"] == "sharpness":  # what a value does not depend on is no part of it
                assert ("subspace_dimension" in node) == (node["spaces"] == ["subspace"])
                assert "starts" in node and node["epsilons"] == [1e-3, 5e-4]
    assert found == {
        "none": {"sharpness": 1 + 3, "distance": 1},  # all boxes and solvers of a space are one
        "robust": {"sharpness": 1, "distance": 1},
    }
    paper = make_study("measure.sharpness.solvers=[paper]")
    assert all("starts" not in node for node in paper.plan.measured(paper.plan.cell("SB", seed=0)))


# the others


def test_batch_size_takes_samples_and_shares() -> None:
    study = make_study("experiment=batch_size", "study.batches=[0.1,32,400,1000]", "seeds=1")
    cells = cells_of(study, whole(study)).values()
    assert [(c.method, c.global_batch_size) for c in cells] == [("SB", 32), ("LB", 400), ("batch 1000", 1000)]


@pytest.mark.parametrize("batches", ["[]", "[0]", "[32,1.5]", "[4001]", "[nan]", "[.inf]"])
def test_batch_size_refuses(batches: str) -> None:
    with pytest.raises(InputError, match=r"^study\.batches="):
        make_study("experiment=batch_size", f"study.batches={batches}")


def test_warm_start_begins_at_models_that_sb_keeps() -> None:
    study, story = make_study("experiment=warm_start", "study.epochs=[5,0.1]", "seeds=1"), Story(quality)
    small, large = cells_of(study, story).values()
    assert (small.method, small.keep, large.origin) == ("SB", frozenset({2, 5}), None)
    story.end(large)
    assert len(cells_of(study, story)) == 2  # SB is not there yet
    story.end(small)
    _, _, *warm = cells_of(study, story).values()
    assert [(c.method, c.origin) for c in warm] == [("LB", Origin(small.id, epoch)) for epoch in (2, 5)]
    # another study's SB is the same cell, though it keeps nothing
    gap = make_study("experiment=gap", "seeds=1")
    assert small.id in cells_of(gap, whole(gap))


@pytest.mark.parametrize("epochs", ["[]", "[0]", "[21]", "[1.5]", "[nan]"])
def test_warm_start_refuses(epochs: str) -> None:
    with pytest.raises(InputError, match=r"^study\.epochs="):
        make_study("experiment=warm_start", f"study.epochs={epochs}", "epochs=20", "seeds=2")


def test_warm_start_does_not_begin_at_a_run_that_diverged() -> None:
    study = make_study("experiment=warm_start", "study.epochs=[5]", "seeds=1")
    found = cells_of(study, lambda cell: {"test_accuracy": 10.0, "diverged": 1.0})
    assert len(found) == 2


def test_a_cell_that_is_yielded_twice_is_one_and_keeps_what_either_keeps() -> None:
    class Twice(Study):
        def cells(self, done):  # type: ignore[no-untyped-def]
            yield self.plan.cell("SB", seed=0, keep=frozenset({1}))
            yield self.plan.cell("SB", seed=0, keep=frozenset({2}), role="branch")

        def sections(self, runs, done):  # type: ignore[no-untyped-def]
            return []

    study = Twice()
    study.plan = make_study().plan
    (cell,) = cells_of(study, whole(study)).values()
    assert cell.keep == {1, 2} and cell.role == "confirm"


# the paper


def test_the_parts_of_the_paper_are_the_studies_alone_and_share_their_cells() -> None:
    paper = make_study("experiment=paper")
    assert isinstance(paper, Paper) and len(paper.studies) == 7
    together = cells_of(paper, whole(paper))
    counts = 0
    for name in paper.studies:
        alone = make_study(f"experiment={name}")
        cells = cells_of(alone, whole(alone))
        counts += len(cells)
        assert cells.keys() <= together.keys()
        ids = {m.id for m in alone.measurements(whole(alone))}
        assert ids <= {m.id for m in paper.measurements(whole(paper))}
    assert len(together) < 0.7 * counts


def test_an_override_goes_to_the_parts_that_have_its_key() -> None:
    changes = ("study.batches=[16,64]", "measure.sharpness.draws=2", "remedy=[none,robust]", "seeds=2")
    paper = make_study("experiment=paper", *changes)
    assert isinstance(paper, Paper)
    assert paper.studies["batch_size"].batches == [16, 64]  # type: ignore[attr-defined]
    assert list(paper.studies["remedies"].plan.remedies) == ["robust"]
    assert not paper.studies["gap"].plan.remedies
    assert all(study.plan.config.seeds == 2 for study in paper.studies.values())
    with pytest.raises(InputError, match=r"study.bathces"):
        make_study("experiment=paper", "study.bathces=[16]")
    with pytest.raises(InputError, match=r"measure=\[sharpness\]: must be left out"):
        make_study("experiment=paper", "measure=[sharpness]")


def test_a_study_along_the_run_measures_at_each_epoch_that_it_keeps() -> None:
    study = make_study("experiment=sharpness_vs_loss", "study.epochs=[1,0.5]", "seeds=1", "epochs=8")
    cells = list(cells_of(study, whole(study)).values())
    assert {cell.method: sorted(cell.keep) for cell in cells} == {"SB": [1, 4], "LB": [1, 4]}
    at = {(m.at[0].cell.method, m.at[0].epoch, m.measure["name"]) for m in study.measurements(whole(study))}
    assert len(at) == 2 * 3 * 2 and ("LB", None, "fit") in at
    with pytest.raises(InputError, match=r"study.epochs=\[9\]: must be all, or a list of epochs from 1 to 8"):
        make_study("experiment=sharpness_vs_loss", "study.epochs=[9]", "epochs=8")
    with pytest.raises(InputError, match="patience=3: must be null"):
        make_study("experiment=sharpness_vs_loss", "patience=3")


def test_lb_is_trained_to_the_loss_of_its_seeds_sb() -> None:
    study = make_study("experiment=gap", "seeds=2", "epochs=5", "study.equal_loss=3")
    story = Story(quality)
    assert all(cell.target_loss is None for cell in cells_of(study, story).values())
    losses = {0: 0.25, 1: 0.5}
    for cell in list(cells_of(study, story).values()):
        story.finals[cell.id] = cell.keep, {"test_accuracy": 1.0, "train_loss": losses[cell.seed]}
    longer = [cell for cell in cells_of(study, story).values() if cell.target_loss is not None]
    assert {cell.seed: cell.target_loss for cell in longer} == losses
    known = {(cell.epochs, cell.global_batch_size, cell.method, cell.role) for cell in longer}
    assert known == {(15, 400, "LB", "equal_loss")}
    assert longer[0].label_without_seed == "LB to SB's loss"


def test_on_one_device_there_is_no_check_of_workers() -> None:
    paper = make_study("experiment=paper")
    alone = paper.within(1)
    assert len(alone.left_out()) == 1 and not paper.left_out() and not paper.within(2).left_out()
    assert not any(cell.asked_workers > 1 for cell in cells_of(alone, whole(alone)).values())
    for each in (paper, paper.within(2)):
        assert any(cell.asked_workers == 2 for cell in cells_of(each, whole(each)).values())


def test_the_published_protocol() -> None:
    gap = make_study("experiment=gap", "scale=paper", train_size=60_000)
    cells = cells_of(gap, whole(gap)).values()
    assert {(c.global_batch_size, c.patience, len(gap.plan.seeds)) for c in cells if not c.target_loss} >= {
        (256, 10, 5), (6000, 10, 5)
    }  # fmt: skip
    warm = make_study("experiment=warm_start", "scale=paper", train_size=60_000)
    found = cells_of(warm, whole(warm)).values()
    assert {cell.origin.epoch for cell in found if cell.origin} == set(range(1, 101))
    assert {(cell.epochs, cell.patience) for cell in found} == {(100, None)}
