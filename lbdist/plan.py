"""From a configuration to cells: what is measured once, under an id that is a hash of what defines it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig

from lbdist.config.build import plain
from lbdist.errors import require

SEARCH_SEED = 10_000
"""Search runs start from seeds of their own, so that confirmation is on fresh ones."""

GROUP_WORK = {"CPU": 1e12, "GPU": 2e14}
"""Training FLOPs under which a worker group does not pay for its start: about 15 s of one such device."""


def digest(value: Any) -> str:
    """A short content address: twelve hex digits of the SHA-256 of a value's canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Cell:
    """One thing to measure once.

    `network`, `data`, `optimizer` and `remedy` are configuration nodes: `_target_` and arguments.
    """

    experiment: str
    network: dict[str, Any]
    data: dict[str, Any]
    optimizer: dict[str, Any]
    method: str
    remedy_name: str
    remedy: dict[str, Any]
    global_batch_size: int
    epochs: int
    seed: int
    stage: str
    asked_workers: int | str
    num_workers: int
    ghost_batch_size: int | None
    micro_batch_size: int | None
    evaluations: int
    validation_fraction: float | None
    setting: str = ""

    @property
    def id(self) -> str:
        """The cell's content address; how many workers `auto` came to is no part of it."""
        defining = dataclasses.asdict(self)
        if self.asked_workers == "auto":
            del defining["num_workers"]
        return digest(defining)

    @property
    def label(self) -> str:
        """What a person calls the cell: method, remedy, setting and seed."""
        return f"{self.label_without_seed} seed {self.seed}"

    @property
    def label_without_seed(self) -> str:
        """The label that the seeds of a setting share."""
        name = self.method if self.remedy_name == "none" else f"{self.method} + {self.remedy_name}"
        return f"{name} {self.setting}".strip()

    def columns(self) -> dict[str, Any]:
        """The columns that every row of the cell repeats."""
        return {
            "experiment": self.experiment,
            "cell": self.id,
            "network": self.network.get("name", self.network["_target_"]),
            "data": self.data.get("name", self.data["_target_"]),
            "method": self.method,
            "remedy": self.remedy_name,
            "global_batch_size": self.global_batch_size,
            "num_workers": self.num_workers,
            "seed": self.seed,
            "stage": self.stage,
            "setting": self.setting,
        }


@dataclass(frozen=True)
class Candidates:
    """The settings of one remedy to choose among: hyperparameter overrides, at least one."""

    remedy: str
    node: Mapping[str, Any]
    settings: Sequence[Mapping[str, Any]]


class Plan:
    """The cells of a study.

    Args:
        config: The study's configuration, checked and resolved.
        train_size: Samples in the training set.
        candidates: Each remedy with the settings that its search space yields.
        sample_flops: FLOPs of a forward and backward pass of one sample.
        device: `CPU` or `GPU`, what a worker runs on.
        slots: Workers that fit at once, the most that `num_workers=auto` takes.
    """

    def __init__(
        self,
        config: DictConfig,
        train_size: int,
        candidates: Sequence[Candidates],
        sample_flops: float,
        device: str = "CPU",
        slots: int = 1,
    ) -> None:
        self.config = config
        self.train_size = train_size
        self.candidates = {candidate.remedy: candidate for candidate in candidates}
        self.work = sample_flops * train_size * config.epochs  # the remedies' extra gradients aside
        self.group_work = GROUP_WORK[device]
        self.slots = slots
        large = config.large_batch
        self.large_batch = max(1, round(large * train_size)) if large < 1 else int(large)
        self.small_batch = int(config.small_batch)
        held_out = round(config.search.validation_fraction * train_size) if self.searched() else 0
        limits = (
            ("small_batch", self.small_batch, self.large_batch, "the large batch"),
            ("large_batch", self.large_batch, train_size - held_out, "the samples that are trained on"),
        )
        for key, batch, limit, what in limits:
            require(batch <= limit, key, config[key], f"a batch of at most {limit}, {what}")

    def searched(self) -> list[str]:
        """The remedies that have more than one setting to choose among."""
        return [name for name, found in self.candidates.items() if len(found.settings) > 1]

    def remedies(self) -> list[str]:
        """The remedies beyond `none`."""
        return [name for name in self.candidates if name != "none"]

    def workers(self, asked: int | str) -> int:
        """The data-parallel workers of a cell: as asked for, or as many as its work pays for."""
        if asked != "auto":
            return int(asked)
        return max(1, min(self.slots, int(self.work / self.group_work)))

    def check_workers(self, slots: int) -> None:
        """Refuses a cell that needs more workers than fit at once.

        Raises:
            InputError: With the key that asks for too many.
        """
        for key in ("num_workers", "baseline_workers"):
            asked = self.config[key]
            if asked is not None:
                require(self.workers(asked) <= slots, key, asked, f"at most {slots}, what the cluster has")

    def cell(
        self,
        method: str,
        remedy: str,
        setting: Mapping[str, Any],
        seed: int,
        stage: str = "confirm",
        workers: int | str | None = None,
    ) -> Cell:
        """The cell of a method, remedy, setting and seed; `workers` overrides `num_workers`."""
        config, candidate = self.config, self.candidates[remedy]
        searching = stage == "search"
        asked = config.num_workers if workers is None else workers
        return Cell(
            experiment=config.name,
            network=plain(config.network),
            data=plain(config.data),
            optimizer=plain(config.optimizer),
            method=method,
            remedy_name=remedy,
            remedy={**{key: value for key, value in candidate.node.items() if key != "search"}, **setting},
            global_batch_size=self.small_batch if method == "SB" else self.large_batch,
            epochs=math.ceil(config.epochs * (config.search.epochs if searching else 1)),
            seed=seed,
            stage=stage,
            asked_workers=asked,
            num_workers=self.workers(asked),
            ghost_batch_size=config.ghost_batch_size,
            micro_batch_size=config.micro_batch_size,
            evaluations=config.evaluations,
            validation_fraction=config.search.validation_fraction if searching else None,
            setting=name_setting(setting),
        )

    def search(self) -> list[Cell]:
        """The search cells: every setting of every remedy, on the validation split."""
        return [
            self.cell("LB", remedy, setting, SEARCH_SEED + seed, "search")
            for remedy in self.searched()
            for setting in self.candidates[remedy].settings
            for seed in range(self.config.search.seeds)
        ]

    def baselines(self) -> list[Cell]:
        """SB and LB without a remedy, confirmed over the seeds.

        Where `baseline_workers` differs from `num_workers`, one LB run more takes `num_workers`, to show that
        the number of workers does not move the numbers.
        """
        workers = self.config.baseline_workers
        seeds = range(self.config.seeds)
        cells = [self.cell("SB", "none", {}, seed) for seed in seeds]
        cells += [self.cell("LB", "none", {}, seed, workers=workers) for seed in seeds]
        extra = self.cell("LB", "none", {}, 0)
        return cells + ([extra] if extra.num_workers != cells[-1].num_workers else [])

    def confirm(self, remedy: str, setting: Mapping[str, Any]) -> list[Cell]:
        """The confirmation of a remedy's chosen setting over fresh seeds."""
        return [self.cell("LB", remedy, setting, seed) for seed in range(self.config.seeds)]

    def sharpness_settings(self, cell: Cell) -> list[dict[str, Any]]:
        """The sharpness values measured at the end of a cell: none for one that only checks the workers."""
        wanted = plain(self.config.sharpness)
        spaces, solvers = wanted["spaces"], wanted["solvers"]
        if cell.remedy_name != "none":
            spaces = spaces if wanted["remedy_spaces"] is None else wanted["remedy_spaces"]
            solvers = solvers if wanted["remedy_solvers"] is None else wanted["remedy_solvers"]
        if cell.stage == "search" or cell in self.baselines()[2 * self.config.seeds :]:
            return []
        shared = {key: wanted[key] for key in ("starts", "batch_norm", "micro_batch_size")}
        return [
            {
                **shared,
                "space": space,
                "epsilon": epsilon,
                "solver": solver,
                "draw": draw,
                "dimension": wanted["subspace_dimension"] if space == "subspace" else 0,
            }
            for space in spaces
            for draw in range(wanted["draws"] if space == "subspace" else 1)
            for solver in solvers
            for epsilon in wanted["epsilons"]
        ]

    def count(self) -> tuple[int, int]:
        """How many cells and how many sharpness values a whole run of the study has."""
        cells = self.baselines() + self.search()
        for remedy in self.remedies():  # whichever setting the search chooses
            cells += self.confirm(remedy, self.candidates[remedy].settings[0])
        return len(cells), sum(len(self.sharpness_settings(cell)) for cell in cells)

    def describe(self) -> list[dict[str, Any]]:
        """What a dry run prints: one record for cells that differ only in their seed."""
        seeds = self.config.seeds
        cells = [(cell.label_without_seed, cell, self.config.search.seeds) for cell in self.search()]
        baselines = self.baselines()
        cells += [(cell.label_without_seed, cell, seeds) for cell in (baselines[0], baselines[seeds])]
        cells += [(cell.label_without_seed, cell, 1) for cell in baselines[2 * seeds :]]
        for remedy in self.remedies():
            settings = self.candidates[remedy].settings
            label = f"LB + {remedy} " + (f"(best of {len(settings)})" if len(settings) > 1 else "")
            cells.append((label.strip(), self.cell("LB", remedy, settings[0], 0), seeds))
        records: dict[tuple[str, str, int], dict[str, Any]] = {}
        for label, cell, count in cells:
            share = math.ceil(cell.global_batch_size / cell.num_workers)
            records.setdefault(
                (cell.stage, label, cell.num_workers),
                {
                    "stage": cell.stage,
                    "cell": label,
                    "seeds": count,
                    "epochs": cell.epochs,
                    "global batch": cell.global_batch_size,
                    "workers": cell.num_workers,
                    "per worker": share,
                    "accumulation": math.ceil(share / (cell.micro_batch_size or share)),
                    "lr": cell.optimizer.get("lr", "default"),
                },
            )
        return list(records.values())


def name_setting(setting: Mapping[str, Any]) -> str:
    """A setting as text: `rho=0.5`."""
    return " ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in setting.items())
