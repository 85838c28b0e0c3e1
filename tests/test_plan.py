"""Cells and their ids, the counts of a dry run, and the study that hands the cells out, without Ray."""

import dataclasses
import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
from omegaconf import OmegaConf

from lbdist import results
from lbdist.config.build import plain
from lbdist.config.compose import compose
from lbdist.config.schema import check
from lbdist.errors import InputError
from lbdist.plan import GROUP_WORK, SEARCH_SEED, Candidates, Cell, Plan, name_setting
from lbdist.run import main
from lbdist.storage import Store
from lbdist.tuning import Capacity, Job, Study, read_cell, replay, settings

CELL: dict[str, Any] = {
    "experiment": "gap",
    "network": {"_target_": "lbdist.networks.dense.Dense", "inputs": 40, "widths": [64, 64], "classes": 10},
    "data": {"_target_": "lbdist.data.mnist1d.MNIST1D", "seed": 42, "root": None},
    "optimizer": {"_target_": "torch.optim.Adam", "lr": 0.001},
    "method": "LB",
    "remedy_name": "robust",
    "remedy": {"_target_": "lbdist.remedies.robust.Robust", "rho": 0.5},
    "global_batch_size": 400,
    "epochs": 24,
    "seed": 0,
    "stage": "confirm",
    "asked_workers": 2,
    "num_workers": 2,
    "ghost_batch_size": None,
    "micro_batch_size": None,
    "evaluations": 12,
    "validation_fraction": None,
    "setting": "rho=0.5",
}

CHANGES: list[dict[str, Any]] = [
    {"experiment": "remedies"},
    {"network": {**CELL["network"], "widths": [64, 65]}},
    {"data": {**CELL["data"], "seed": 43}},
    {"optimizer": {**CELL["optimizer"], "lr": 0.0011}},
    {"method": "SB"},
    {"remedy_name": "none"},
    {"remedy": {**CELL["remedy"], "rho": 0.2}},
    {"global_batch_size": 401},
    {"epochs": 25},
    {"seed": 1},
    {"stage": "search"},
    {"asked_workers": "auto"},
    {"asked_workers": 4, "num_workers": 4},
    {"num_workers": 4},
    {"ghost_batch_size": 32},
    {"micro_batch_size": 32},
    {"evaluations": 6},
    {"validation_fraction": 0.2},
    {"setting": "rho=0.2"},
]


def make_plan(*overrides: str, train_size: int = 1000, slots: int = 4, flops: float = 1e3) -> Plan:
    """The plan of overrides of the default study, on data and a network that need not be there."""
    config = compose(overrides)
    config.derived.inputs, config.derived.channels, config.derived.classes = 40, 1, 10
    OmegaConf.resolve(config)
    check(config)
    candidates = [
        Candidates(name, node, settings(node.get("search"), config.search.samples, f"remedy.{name}"))
        for name, node in plain(config.remedy).items()
    ]
    return Plan(config, train_size, candidates, flops, "CPU", slots)


def test_every_field_is_in_the_id() -> None:
    assert {name for change in CHANGES for name in change} == {f.name for f in dataclasses.fields(Cell)}
    ids = [Cell(**{**CELL, **change}).id for change in [{}, *CHANGES]]
    assert len(set(ids)) == len(ids)
    assert all(len(name) == 12 and set(name) <= set("0123456789abcdef") for name in ids)


def test_id_is_that_of_the_content() -> None:
    cell = Cell(**CELL)
    backwards = {
        key: dict(reversed(value.items())) if isinstance(value, dict) else value
        for key, value in reversed(CELL.items())
    }
    assert Cell(**backwards).id == cell.id
    assert Cell(**json.loads(json.dumps(dataclasses.asdict(cell)))).id == cell.id  # as cell.json keeps it
    program = "import json, sys; from lbdist.plan import Cell; print(Cell(**json.load(sys.stdin)).id)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps(backwards),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONHASHSEED": "1"},
        timeout=120,
    )
    assert done.stdout.strip() == cell.id, done.stderr


def test_id_does_not_hang_on_what_auto_came_to() -> None:
    one, four = (Cell(**{**CELL, "asked_workers": "auto", "num_workers": n}) for n in (1, 4))
    assert one.id == four.id
    plans = [make_plan(slots=1), make_plan(slots=8, flops=1e12)]
    assert [plan.workers("auto") for plan in plans] == [1, 8]
    first, second = ([cell.id for cell in plan.search()] for plan in plans)
    assert first == second and first


@pytest.mark.parametrize(
    ("work", "slots", "workers"),
    [(0.5, 8, 1), (1.0, 8, 1), (3.9, 8, 3), (100, 8, 8), (100, 1, 1)],
)
def test_auto_takes_as_many_workers_as_the_work_pays_for(work: float, slots: int, workers: int) -> None:
    flops = work * GROUP_WORK["CPU"] / (1000 * 24)
    plan = make_plan("epochs=24", slots=slots, flops=flops * (1 + 1e-9))
    assert plan.workers("auto") == workers
    assert plan.workers(3) == 3


STUDIES = [
    ["experiment=gap"],
    ["experiment=gap", "baseline_workers=2", "seeds=1"],
    ["experiment=gap", "num_workers=2", "baseline_workers=1"],
    ["experiment=remedies"],
    ["experiment=remedies", "num_workers=3", "seeds=2", "search.seeds=2", "sharpness.draws=2"],
    ["remedy=[robust]", "sharpness.spaces=[full]"],
    ["remedy=[none,growth,robust]", "sharpness.remedy_solvers=null", "remedy.robust.search.rho=[1]"],
]


@pytest.mark.parametrize("overrides", STUDIES, ids=" ".join)
def test_counts_agree(overrides: list[str]) -> None:
    plan = make_plan(*overrides)
    if "none" not in plan.candidates:
        plan = Plan(
            plan.config, 1000, [*plan.candidates.values(), Candidates("none", {"_target_": "x"}, [{}])], 1e3
        )
    confirmed = plan.baselines()
    for remedy in plan.remedies():
        confirmed += plan.confirm(remedy, plan.candidates[remedy].settings[0])
    cells = plan.search() + confirmed
    count, values = plan.count()
    assert len({cell.id for cell in cells}) == len(cells) == count
    assert values == sum(len(plan.sharpness_settings(cell)) for cell in confirmed)
    records = plan.describe()
    assert sum(record["seeds"] for record in records) == count
    assert sum(r["seeds"] for r in records if r["stage"] == "search") == len(plan.search())
    # confirmation is on fresh seeds
    assert all(cell.seed >= SEARCH_SEED for cell in plan.search())
    assert all(cell.seed < SEARCH_SEED for cell in confirmed)
    assert all((cell.validation_fraction is None) == (cell.stage == "confirm") for cell in cells)


def test_baselines() -> None:
    plan = make_plan("experiment=gap", "seeds=2", "baseline_workers=2")
    found = [(c.method, c.seed, c.global_batch_size, c.num_workers) for c in plan.baselines()]
    # the last one shows that the number of workers does not move the numbers
    assert found == [
        ("SB", 0, 32, 1),
        ("SB", 1, 32, 1),
        ("LB", 0, 100, 2),
        ("LB", 1, 100, 2),
        ("LB", 0, 100, 1),
    ]
    assert len(make_plan("experiment=gap", "seeds=2").baselines()) == 4


def test_share_and_count_of_the_large_batch_are_the_same() -> None:
    share, count = make_plan("large_batch=0.1"), make_plan("large_batch=100")
    assert share.large_batch == count.large_batch == 100
    assert [cell.id for cell in share.baselines()] == [cell.id for cell in count.baselines()]


@pytest.mark.parametrize(
    ("workers", "micro", "share", "accumulation"),
    [(1, None, 100, 1), (3, None, 34, 1), (1, 10, 100, 10), (3, 10, 34, 4), (8, 64, 13, 1)],
)
def test_derived_batches(workers: int, micro: int | None, share: int, accumulation: int) -> None:
    overrides = [f"num_workers={workers}", f"micro_batch_size={micro or 'null'}", "optimizer.lr=0.02"]
    records = make_plan("experiment=gap", *overrides).describe()
    record = next(record for record in records if record["cell"] == "LB")
    wanted = {"workers": workers, "per worker": share, "accumulation": accumulation, "lr": 0.02}
    assert {key: record[key] for key in wanted} == wanted


def test_search_runs_are_shorter() -> None:
    plan = make_plan("epochs=5", "search.epochs=0.5")
    assert {cell.epochs for cell in plan.search()} == {3}
    assert {cell.epochs for cell in plan.baselines()} == {5}


def test_sharpness_settings() -> None:
    plan = make_plan("sharpness.draws=3", "sharpness.remedy_solvers=[converged]")
    cells = [plan.baselines()[0], *plan.confirm("robust", {"rho": 0.2})[:1]]
    none, robust = (plan.sharpness_settings(cell) for cell in cells)
    assert len(none) == 2 * (1 + 3) * 2 and len(robust) == 2
    assert {(s["space"], s["draw"]) for s in none} == {("full", 0), *(("subspace", d) for d in range(3))}
    assert {s["dimension"] for s in none if s["space"] == "full"} == {0}
    assert {s["solver"] for s in robust} == {"converged"}
    assert all(plan.sharpness_settings(cell) == [] for cell in plan.search())
    check = make_plan("baseline_workers=2", "sharpness.remedy_spaces=[full]").baselines()[-1]
    assert (check.num_workers, check.seed) == (1, 0)
    assert make_plan("baseline_workers=2").sharpness_settings(check) == []


def test_dry_run(
    tmp_path: Path,
    mnist1d_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["experiment=gap", "seeds=2", "epochs=24", "data.train_samples=600", "data.test_samples=50"]
    arguments += ["num_workers=3", "ghost_batch_size=8", "micro_batch_size=8", "optimizer.lr=0.02"]
    arguments += [f"data.root={mnist1d_cache / 'lbdist'}", "dry_run=true", "sharpness.spaces=[full]"]
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert err == ""
    # SB and LB over 2 seeds; 2 solvers x 2 epsilons at each
    assert out.startswith("study gap: mlp on mnist1d, 4 cells, 16 sharpness values\nnum_workers=3\n")
    heads, *rows = (line.split("  ") for line in out.splitlines()[2:])
    table = [
        dict(zip([h.strip() for h in heads if h], [c.strip() for c in row if c], strict=True)) for row in rows
    ]
    shared = {"stage": "confirm", "seeds": "2", "epochs": "24", "workers": "3", "lr": "0.02"}
    assert table == [
        {**shared, "cell": "SB", "global batch": "32", "per worker": "11", "accumulation": "2"},
        {**shared, "cell": "LB", "global batch": "60", "per worker": "20", "accumulation": "3"},
    ]
    assert list(tmp_path.iterdir()) == []
    assert not ray.is_initialized()


# the study, handed out by hand


def drive(
    study: Study, capacity: int, accuracy: Callable[[Cell], float | None], seed: int = 0
) -> list[tuple[str, Job]]:
    """Takes every job that fits, ends a random one, and so on; None for an accuracy is a failure."""
    chance, order, used_most = random.Random(seed), [], 0
    while study.waiting or study.running:
        while (job := study.next(f"trial {len(order)}")) is not None:
            order.append((f"trial {len(order)}", job))
            waiting = [other.workers for other in study.waiting]
            assert job.workers >= max(waiting, default=0), "a worker group waits behind a smaller job"
        used = sum(job.workers for job in study.running.values())
        assert used <= capacity and len(study.running) <= study.max_concurrent
        assert study.running, "jobs wait although nothing runs"
        used_most = max(used_most, used)
        name = chance.choice(list(study.running))
        values = [accuracy(cell) for cell in study.running[name].cells]
        failed = any(value is None for value in values)
        study.complete(
            name, {"error": "OutOfMemoryError: no"} if failed else {"accuracy": sum(values) / len(values)}
        )
    return order


def quality(cell: Cell) -> float:
    """A validation accuracy for which the best settings are known; the seeds differ by less."""
    best = {"robust": ("rho", 0.2), "growth": ("stages", 6)}.get(cell.remedy_name)
    value = 80.0 if best is None else 70.0 + 10 * (cell.remedy[best[0]] == best[1])
    return value + 0.1 * (cell.seed % 7)


@pytest.mark.parametrize("slots", [2, 3, 8])
@pytest.mark.parametrize("seed", range(3))
def test_study_hands_out_everything(slots: int, seed: int, tmp_path: Path) -> None:
    plan = make_plan("remedy=[none,growth,robust]", "search.seeds=2", "baseline_workers=2", slots=slots)
    ended: list[tuple[Job, Any]] = []
    study = Study(plan, Capacity(slots, 0), Store(tmp_path), finished=lambda *end: ended.append(end))
    order = drive(study, slots, quality, seed)
    handed = Counter(cell.id for _, job in order for cell in job.cells)
    assert set(handed.values()) == {1}
    wanted = plan.baselines() + plan.search()
    wanted += plan.confirm("robust", {"rho": 0.2}) + plan.confirm("growth", {"stages": 6})
    assert set(handed) == set(study.cells) == {cell.id for cell in wanted}
    assert len(handed) == plan.count()[0]
    assert [job for job, _ in ended] != [] and len(ended) == len(order)
    assert study.failed == [] and study.suggest("one more") == study.FINISHED
    # worker groups first, while the machine is empty
    groups = [job.workers > 1 for _, job in order]
    assert groups[0] and groups == sorted(groups, reverse=True)


def test_seeds_of_a_group_share_it_where_they_cannot_run_at_once(tmp_path: Path) -> None:
    plan = make_plan("experiment=gap", "num_workers=2", "seeds=3", slots=4)
    study = Study(plan, Capacity(4, 0), Store(tmp_path))
    found = [(job.cells[0].method, [cell.seed for cell in job.cells]) for _, job in drive(study, 4, quality)]
    assert sorted(found) == [("LB", [0, 1]), ("LB", [2]), ("SB", [0, 1]), ("SB", [2])]


def test_max_concurrent(tmp_path: Path) -> None:
    study = Study(make_plan("remedy=[none,robust]"), Capacity(8, 0), Store(tmp_path), max_concurrent=2)
    assert study.next("a") and study.next("b") and study.next("c") is None
    assert study.suggest("c") is None  # not the end
    drive_rest = len(study.waiting)
    study.complete("a", {"accuracy": 1.0})
    assert study.next("c") and len(study.waiting) == drive_rest - 1


def test_failed_search_runs_are_not_chosen(tmp_path: Path) -> None:
    plan = make_plan("remedy=[none,growth,robust]")

    def accuracy(cell: Cell) -> float | None:
        failed = cell.stage == "search" and cell.setting in ("rho=0.2", "stages=3", "stages=6")
        return None if failed else quality(cell)

    study = Study(plan, Capacity(2, 0), Store(tmp_path))
    drive(study, 2, accuracy)
    settings_confirmed = {c.remedy_name: c.setting for c in study.cells.values() if c.stage == "confirm"}
    # 0.2 would have been the best; growth has no run to choose from
    assert settings_confirmed == {"none": "", "robust": "rho=0.5"}
    assert sorted(job.cells[0].setting for job in study.failed) == ["rho=0.2", "stages=3", "stages=6"]


def test_diverged_search_runs_are_not_chosen(tmp_path: Path) -> None:
    study = Study(make_plan("remedy=[none,robust]"), Capacity(2, 0), Store(tmp_path))
    drive(study, 2, lambda cell: float("nan") if cell.setting == "rho=0.2" else 50.0)
    assert {c.setting for c in study.cells.values() if c.stage == "confirm"} == {"", "rho=0.5"}


def test_cells_are_written_before_they_are_handed_out(tmp_path: Path) -> None:
    study = Study(make_plan("experiment=gap", "seeds=1"), Capacity(4, 0), Store(tmp_path))
    told = study.suggest("trial")
    assert read_cell(Store(tmp_path), told["cell"]) == study.running["trial"].cells[0]
    study.on_trial_complete("trial", {"accuracy": 1.0})
    assert study.failed == []
    study.suggest("second")
    study.on_trial_complete("second", error=True)
    assert [job.cells[0].method for job in study.failed] == ["LB"]


def write_cells(folder: Path, cells: list[Cell], accuracy: Callable[[Cell], float]) -> None:
    for cell in cells:
        row = {**cell.columns(), "metric": "accuracy", "value": accuracy(cell)}
        row["split"] = "validation" if cell.stage == "search" else "test"
        results.write_rows(folder, cell.id, [row])


def test_replay_goes_on_where_the_rows_end(tmp_path: Path) -> None:
    plan = make_plan("remedy=[none,growth,robust]", "search.seeds=2", "baseline_workers=null")
    study = replay(plan, Store(tmp_path))
    assert len(study.waiting) == len(plan.baselines() + plan.search())  # nothing is there yet
    write_cells(tmp_path, plan.search() + plan.baselines()[1:], quality)
    chosen = plan.confirm("robust", {"rho": 0.2}) + plan.confirm("growth", {"stages": 6})
    missing = {job.id for job in replay(plan, Store(tmp_path)).waiting}
    assert missing == {cell.id for cell in [plan.baselines()[0], *chosen]}
    write_cells(tmp_path, [plan.baselines()[0], *chosen], quality)
    results.compact(tmp_path)
    study = replay(plan, Store(tmp_path))
    assert study.waiting == [] and len(study.cells) == plan.count()[0]


def test_replay_chooses_as_the_run_did(tmp_path: Path) -> None:
    plan = make_plan("remedy=[none,robust]", "num_workers=2", "search.seeds=2", "seeds=1", slots=2)
    values = {"rho=0.2": (60.0, 90.0), "rho=0.5": (80.0, 81.0)}  # 0.5 is better on average

    def accuracy(cell: Cell) -> float:
        return values[cell.setting][cell.seed % 2] if cell.stage == "search" else 50.0

    study = Study(plan, Capacity(2, 0), Store(tmp_path))
    drive(study, 2, accuracy)
    write_cells(tmp_path, list(study.cells.values()), accuracy)
    assert replay(plan, Store(tmp_path)).cells.keys() == study.cells.keys()


# search spaces


def test_grids_are_run_whole() -> None:
    assert settings(None, 5, "x") == settings({}, 5, "x") == [{}]
    found = settings({"rho": [0.1, 0.2], "norm": ["2", "inf"]}, 5, "x")
    assert len(found) == 4 and {name_setting(s) for s in found} >= {"rho=0.1 norm=inf", "rho=0.2 norm=2"}


def test_domains_are_drawn_and_the_draw_is_the_same_again() -> None:
    space = {"rho": {"_target_": "ray.tune.loguniform", "lower": 1e-3, "upper": 1.0}, "steps": [1, 2]}
    found = settings(space, 5, "x")
    assert found == settings(space, 5, "x")
    assert len(found) == 10 and len({s["rho"] for s in found}) >= 5
    assert all(1e-3 <= s["rho"] <= 1 and type(s["rho"]) is float for s in found)
    json.dumps(found)  # plain values, for the id
    drawn = settings({"k": {"_target_": "ray.tune.randint", "lower": 0, "upper": 9}}, 3, "x")
    assert len(drawn) == 3 and all(type(s["k"]) is int for s in drawn)


@pytest.mark.parametrize(
    "space",
    [
        {"rho": {"_target_": "ray.tune.nope", "lower": 0}},
        {"rho": {"_target_": "ray.tune.loguniform", "lower": -1, "upper": 1}},
        {"rho": {"_target_": "ray.tune.loguniform"}},
        {"rho": 0.3},
        {"rho": "abc"},
        [1, 2],
    ],
    ids=str,
)
def test_bad_space(space: Any) -> None:
    with pytest.raises(InputError, match=r"^remedy\.robust\.search=") as caught:
        settings(space, 2, "remedy.robust")
    assert "\n" not in str(caught.value)
