"""The dataclass schema of every key, and the rules that a type cannot state."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf

from lbdist.errors import require


@dataclass
class Search:
    """How each remedy's hyperparameters are chosen, on a validation split carved from the training set."""

    seeds: int = 1  # training runs a setting, each from its own start
    samples: int = 4  # draws where a search space is continuous; grids are run whole
    validation_fraction: float = 0.2
    epochs: float = 1.0  # epochs of a search run, as a share of `epochs`


@dataclass
class Sharpness:
    """Which values of Metric 2.1 are measured at every confirmed minimiser."""

    epsilons: list[float] = field(default_factory=lambda: [1e-3, 5e-4])
    spaces: list[str] = field(default_factory=lambda: ["full", "subspace"])
    subspace_dimension: int = 100
    draws: int = 1  # random subspaces, each its own row
    solvers: list[str] = field(default_factory=lambda: ["paper", "converged"])
    remedy_spaces: list[str] | None = None  # `spaces` and `solvers` at the remedies' minimisers;
    remedy_solvers: list[str] | None = None  # None: the same
    starts: int = 2  # starts of the converged solver
    batch_norm: str = "running"  # statistics while measuring: running, batch or recalibrated
    micro_batch_size: int = 1000


@dataclass
class Derived:
    """What the network takes from the data, filled in once the data is read."""

    inputs: int = 0
    channels: int = 0
    classes: int = 0


@dataclass
class Config:
    """Every key of a study; `experiments/config.yaml` says what each is for."""

    name: str = MISSING
    network: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    remedy: dict[str, Any] = field(default_factory=dict)
    small_batch: int = MISSING
    large_batch: float = MISSING
    epochs: int = MISSING
    seeds: int = MISSING
    num_workers: Any = "auto"
    baseline_workers: Any = None
    ghost_batch_size: int | None = None
    micro_batch_size: int | None = None
    evaluations: int = 10
    derived: Derived = field(default_factory=Derived)
    search: Search = field(default_factory=Search)
    sharpness: Sharpness = field(default_factory=Sharpness)
    storage: str = "results"
    max_concurrent: int | None = None
    retries: int = 2
    dry_run: bool = False


def check(config: DictConfig) -> None:
    """The rules of the keys that need neither data nor network.

    Raises:
        InputError: The first rule that is broken.
    """
    for key in ("name", "small_batch", "large_batch", "epochs", "seeds"):
        require(not OmegaConf.is_missing(config, key), key, "???", "given")
    require(
        bool(re.fullmatch(r"\w[\w.-]*", config.name)),
        "name",
        config.name,
        "letters, digits, '.', '_', '-', the first a letter or digit",
    )
    for key in ("small_batch", "epochs", "seeds", "evaluations"):
        require(config[key] >= 1, key, config[key], "at least 1")
    large = config.large_batch
    require(
        0 < large < 1 or (large >= 1 and float(large).is_integer()),
        "large_batch",
        large,
        "a number of samples, or a share of the training set between 0 and 1",
    )
    for key in ("num_workers", "baseline_workers"):
        workers = config[key]
        require(
            workers == "auto"
            or (workers is None and key == "baseline_workers")
            or (isinstance(workers, int) and not isinstance(workers, bool) and workers >= 1),
            key,
            workers,
            "auto or a whole number of at least 1",
        )
    for key in ("ghost_batch_size", "micro_batch_size", "max_concurrent"):
        require(config[key] is None or config[key] >= 1, key, config[key], "null or at least 1")
    if config.micro_batch_size and config.ghost_batch_size:
        require(
            config.micro_batch_size % config.ghost_batch_size == 0,
            "micro_batch_size",
            config.micro_batch_size,
            f"a multiple of ghost_batch_size={config.ghost_batch_size}",
        )
    require(config.retries >= 0, "retries", config.retries, "0 or more")
    require(len(config.remedy) > 0, "remedy", "[]", "one or more remedies")
    search = config.search
    require(search.seeds >= 1, "search.seeds", search.seeds, "at least 1")
    require(search.samples >= 1, "search.samples", search.samples, "at least 1")
    fraction = search.validation_fraction
    require(0 < fraction < 1, "search.validation_fraction", fraction, "between 0 and 1")
    require(0 < search.epochs <= 1, "search.epochs", search.epochs, "a share in (0, 1]")
    sharpness = config.sharpness
    for epsilon in sharpness.epsilons:
        require(0 < epsilon < float("inf"), "sharpness.epsilons", sharpness.epsilons, "all above 0")
    known = ("paper", "converged")
    for key, allowed in (
        ("spaces", ("full", "subspace")),
        ("solvers", known),
        ("remedy_solvers", known),
        ("remedy_spaces", ("full", "subspace")),
    ):
        require(
            set(sharpness[key] or ()) <= set(allowed),
            f"sharpness.{key}",
            sharpness[key],
            "among " + ", ".join(allowed),
        )
    for key in ("subspace_dimension", "draws", "starts", "micro_batch_size"):
        require(sharpness[key] >= 1, f"sharpness.{key}", sharpness[key], "at least 1")
    modes = ("running", "batch", "recalibrated")
    require(sharpness.batch_norm in modes, "sharpness.batch_norm", sharpness.batch_norm, " or ".join(modes))
