"""The dataclass schema of every key, and the rules that a type cannot state.

The values are in `experiments/config.yaml` and the studies beside it, each stated once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf

from lbdist.errors import require
from lbdist.rules import RULES

RESERVED = ("cells", "measurements", "compacted")
"""What a storage folder has for all studies, by whose names no study may be called."""

PRECISIONS = ("float32", "tf32", "bfloat16")
EXECUTORS = ("ray", "serial")
OUTPUTS = ("text", "json")
DECAYS = ("constant", "cosine", "step")


def one_of(words: Sequence[str]) -> str:
    """What is allowed, in words: `a, b or c`."""
    return f"{', '.join(words[:-1])} or {words[-1]}"


@dataclass
class Search:
    """How each remedy's hyperparameters are chosen, on a validation split carved from the training set."""

    seeds: int = MISSING
    samples: int = MISSING
    validation_fraction: float = MISSING
    epochs: float = MISSING


@dataclass
class RateSchedule:
    """The learning rate during training (`lbdist.training.learning_rate.LearningRate`)."""

    warmup: float = MISSING
    decay: str = MISSING
    milestones: list[float] = MISSING
    gamma: float = MISSING


@dataclass
class Derived:
    """What the network takes from the data and the loss, filled in once the data is read."""

    inputs: int = 0
    channels: int = 0
    classes: int = 0
    outputs: int = 0
    tokens: int = 0


@dataclass
class Config:
    """Every key of a study; `experiments/config.yaml` says what each is for."""

    name: str = MISSING
    study: dict[str, Any] = MISSING
    network: dict[str, Any] = MISSING
    data: dict[str, Any] = MISSING
    loss: dict[str, Any] = MISSING
    optimizer: dict[str, Any] = MISSING
    remedy: dict[str, Any] = MISSING
    measure: dict[str, Any] = MISSING
    combinations: list[list[str]] = MISSING
    checkpoint: str | None = MISSING
    checkpoint_key: str | None = MISSING
    small_batch: int = MISSING
    large_batch: float = MISSING
    epochs: int = MISSING
    seeds: int = MISSING
    num_workers: Any = MISSING
    ghost_batch_size: int | None = MISSING
    micro_batch_size: int | None = MISSING
    test_points: int = MISSING
    precision: str = MISSING
    seeds_at_once: Any = MISSING
    lr_rule: str = MISSING
    schedule: RateSchedule = field(default_factory=RateSchedule)
    scale: dict[str, Any] = MISSING  # free values that studies read, beside `name` and `samples`
    patience: int | None = MISSING
    derived: Derived = field(default_factory=Derived)
    search: Search = field(default_factory=Search)
    executor: str = MISSING
    output: str = MISSING
    retrain: str | None = MISSING
    storage: str = MISSING
    max_concurrent: int | None = MISSING
    retries: int = MISSING
    regroup_seconds: float = MISSING
    dry_run: bool = MISSING


def check(config: DictConfig) -> None:
    """The rules of the keys that need neither data nor network.

    Raises:
        InputError: The first rule that is broken.
    """
    missing = sorted(OmegaConf.missing_keys(config))
    require(not missing, next(iter(missing), ""), "???", "given")
    allowed = "up to 100 letters, digits, '.', '_', '-', the first a letter or digit, and not "
    good = bool(re.fullmatch(r"\w[\w.-]{,99}", config.name)) and config.name not in RESERVED
    require(good, "name", config.name, allowed + " or ".join(RESERVED))
    good = bool(config.storage.strip()) and "\0" not in config.storage
    require(good, "storage", config.storage, "a folder or URI")
    _check_numbers("", OmegaConf.to_container(config))
    _check_runs(config)
    _check_learning_rate(config)
    for key, words in (("precision", ("auto", *PRECISIONS)), ("executor", EXECUTORS), ("output", OUTPUTS)):
        require(config[key] in words, key, config[key], one_of(words))
    require(config.retrain in (None, "changed"), "retrain", config.retrain, "null or changed")
    require(0 <= config.retries <= 10_000, "retries", config.retries, "from 0 to 10,000")
    seconds = config.regroup_seconds
    require(0 < seconds <= 86_400, "regroup_seconds", seconds, "above 0, up to 86,400")
    fits = config.checkpoint is None or "checkpoint" in config.study
    require(fits, "checkpoint", config.checkpoint, f"null in {config.name}: experiment=checkpoints takes it")
    require(len(config.remedy) > 0, "remedy", "[]", "one or more remedies")
    search = config.search
    require(1 <= search.seeds <= 10_000, "search.seeds", search.seeds, "from 1 to 10,000")
    require(1 <= search.samples <= 10_000, "search.samples", search.samples, "from 1 to 10,000")
    fraction = search.validation_fraction
    require(0 < fraction < 1, "search.validation_fraction", fraction, "between 0 and 1")
    require(0 < search.epochs <= 1, "search.epochs", search.epochs, "a share in (0, 1]")


def _check_runs(config: DictConfig) -> None:
    """How large runs are, and what they run on."""
    require(config.small_batch >= 1, "small_batch", config.small_batch, "at least 1")
    for key, most in (("epochs", 1_000_000), ("seeds", 10_000), ("test_points", 1_000_000)):
        require(1 <= config[key] <= most, key, config[key], f"from 1 to {most:,}")
    large = config.large_batch
    good = 0 < large < 1 or (large >= 1 and float(large).is_integer())
    words = "a number of samples, or a share of the training set between 0 and 1"
    require(good, "large_batch", large, words)
    for key, most in (("num_workers", 100_000), ("seeds_at_once", 1000)):
        given = config[key]
        good = given == "auto" or (isinstance(given, int) and given is not True and 1 <= given <= most)
        require(good, key, given, f"auto or a whole number from 1 to {most:,}")
    for key in ("ghost_batch_size", "micro_batch_size", "max_concurrent", "patience"):
        require(config[key] is None or config[key] >= 1, key, config[key], "null or at least 1")
    check_micro_batch("micro_batch_size", config.micro_batch_size, config.ghost_batch_size)
    name, samples = (config.scale.get(key) for key in ("name", "samples"))
    require(isinstance(name, str), "scale.name", name, "a name")
    for key, value in config.scale.items():
        numbers = [v for v in (value if OmegaConf.is_list(value) else [value]) if isinstance(v, int | float)]
        require(all(number > 0 for number in numbers), f"scale.{key}", value, "above 0")
    good = samples is None or (isinstance(samples, int) and samples >= 2)
    require(good, "scale.samples", samples, "null or at least 2")


def check_micro_batch(key: str, micro: int | None, ghost: int | None) -> None:
    """Refuses a micro-batch that would cut a ghost batch.

    Raises:
        InputError: With the key.
    """
    good = not (micro and ghost) or micro % ghost == 0
    require(good, key, micro, f"a multiple of ghost_batch_size={ghost}")


def _check_learning_rate(config: DictConfig) -> None:
    """How the learning rate follows the batch, and how it changes during training."""
    require(config.lr_rule in RULES, "lr_rule", config.lr_rule, one_of(RULES))
    schedule = config.schedule
    require(schedule.decay in DECAYS, "schedule.decay", schedule.decay, one_of(DECAYS))
    allowed = f"from 0 to less than the {config.epochs} epochs"
    require(0 <= schedule.warmup < config.epochs, "schedule.warmup", schedule.warmup, allowed)
    parts = list(schedule.milestones)
    good = bool(parts) and all(0 < part < 1 for part in parts)
    require(good, "schedule.milestones", parts, "one or more parts of the run, between 0 and 1")
    require(0 <= schedule.gamma <= 1, "schedule.gamma", schedule.gamma, "from 0 to 1")


def _check_numbers(key: str, value: Any) -> None:
    """Refuses NaN, infinity and integers beyond 64 bits, wherever they stand."""
    if isinstance(value, dict):
        for name, inner in value.items():
            _check_numbers(f"{key}.{name}".lstrip("."), inner)
        return
    numbers = [value]
    while any(isinstance(number, list) for number in numbers):
        numbers = [
            inner for number in numbers for inner in (number if isinstance(number, list) else [number])
        ]
    for number in numbers:
        if isinstance(number, float):
            require(math.isfinite(number), key, value, "finite")
        elif isinstance(number, int):
            require(abs(number) < 2**63, key, value, "below 2^63")
