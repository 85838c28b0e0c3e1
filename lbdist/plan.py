"""What is done once, under an id that is a hash of what defines it: cells, and measurements at their models.

Neither torch nor ray is needed here: networks, losses, optimisers, remedies and measures are configuration
nodes, mappings with a `_target_` and its arguments.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lbdist import code
from lbdist.errors import InputError

Node = Mapping[str, Any]
"""A configuration node: `_target_`, its arguments, and `name`, what people call it."""

AUTO = "auto"

Role = Literal[
    "search", "confirm", "equal_loss", "workers", "precision", "timing", "collectives", "branch", "advised",
    "benchmark",
]  # fmt: skip
"""What a cell is for: to choose a setting; to be counted in means, as it is or trained to SB's loss; to check
that neither the number of workers nor the precision moves the numbers; to be timed; to branch off a run; to
try a remedy at the batch that is recommended; to be compared with what others would write.
"""

COUNTED: tuple[Role, ...] = ("confirm", "equal_loss")
"""The roles that means are over."""


def digest(value: Any) -> str:
    """A short content address: twelve hex digits of the SHA-256 of a value's canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def title(node: Node) -> str:
    """What people call a node: its name, else its target."""
    return str(node.get("name", node["_target_"]))


def method_label(
    method: str, remedy: str = "none", role: str = "confirm", origin_epoch: float | None = None
) -> str:
    """The name of a method in tables and figures.

    Example:
        >>> method_label("LB"), method_label("LB", "robust"), method_label("LB", origin_epoch=2)
        ('LB', 'LB + robust', 'LB from epoch 2')
        >>> method_label("LB", role="equal_loss")
        "LB to SB's loss"
    """
    name = method if remedy == "none" else f"{method} + {remedy}"
    name += " to SB's loss" if role == "equal_loss" else ""
    return name if origin_epoch is None else f"{name} from epoch {origin_epoch:g}"


def held_out(samples: int, fraction: float | None) -> int:
    """How many of so many training samples make the validation split.

    Example:
        >>> held_out(4000, 0.2), held_out(4000, None)
        (800, 0)
    """
    return round((fraction or 0) * samples)


def _defining(node: Node) -> dict[str, Any]:
    return {key: value for key, value in node.items() if key != "name"}


@dataclass(frozen=True)
class Origin:
    """Where a run begins, if not at its seed's x0: the model that a cell kept after an epoch.

    Attributes:
        cell: The other cell's id.
        epoch: After which of its epochs.
    """

    cell: str
    epoch: int


@dataclass(frozen=True)
class Cell:
    """One run. Its id holds what defines the run, and nothing else.

    Attributes:
        network: Node of the network.
        data: Node of the data set; `samples` holds the digest of each split, by which it is known, wherever
            it lies.
        loss: Node of the loss.
        optimizer: Node of the optimiser.
        remedies: Nodes of the remedies, none of them or several.
        global_batch_size: Samples a step, over all workers.
        epochs: Passes over the training set.
        seed: Of the starting point, the order of the samples, augmentation and dropout.
        num_workers: Data-parallel workers, or `auto`; what `auto` resolves to is not part of the id.
        ghost_batch_size: Batch-norm group in samples; None for the whole global batch.
        micro_batch_size: Samples a worker takes through the network at once; None for all of its share.
        test_points: Points of the test curve.
        validation_fraction: Part of the training set that is held out, and tested on instead of the test set.
        precision: Of its products, or `auto`; what `auto` resolves to is not part of the id.
        schedule: Of the learning rate; None for a constant one.
        patience: Epochs after which it ends if its loss does not improve; None runs all epochs.
        target_loss: Training loss, as evaluated, at which it ends; None runs all epochs.
        procedure: Node of what runs instead of training; None for training.
        origin: Where the run begins; None for the seed's x0.
        loaded: Digest of what the network begins with whatever the seed, such as weights of a file.
        method: `SB`, `LB`, or another batch, `batch 64`. From here on, nothing is part of the id.
        remedy: What people call the remedies: `none`, `robust`, `augmentation+robust`.
        setting: What people call the remedies' hyperparameters: `rho=0.5`.
        role: What the cell is for.
        rule: How the learning rate followed the batch.
        keep: Epochs whose model is kept, beside the last.
    """

    network: Node
    data: Node
    loss: Node
    optimizer: Node
    remedies: tuple[Node, ...]
    global_batch_size: int
    epochs: int
    seed: int
    num_workers: int | str = AUTO
    ghost_batch_size: int | None = None
    micro_batch_size: int | None = None
    test_points: int = 10
    validation_fraction: float | None = None
    precision: str = AUTO
    schedule: Mapping[str, Any] | None = None
    patience: int | None = None
    target_loss: float | None = None
    procedure: Node | None = None
    origin: Origin | None = None
    loaded: str | None = None
    method: str = "LB"
    remedy: str = "none"
    setting: str = ""
    role: Role = "confirm"
    rule: str = "none"
    keep: frozenset[int] = frozenset()

    @property
    def alone(self) -> bool:
        """Whether nothing else may run at the same time, since it is timed."""
        return self.procedure is not None

    @functools.cached_property
    def id(self) -> str:
        """The cell's content address. Fields that are None are left out, so new fields leave it alone."""
        defining: dict[str, Any] = {
            **{key: _defining(getattr(self, key)) for key in ("network", "loss", "optimizer")},
            "samples": self.samples,
            "remedies": [_defining(node) for node in self.remedies],
            "num_workers": None if self.num_workers == AUTO else self.num_workers,
            "precision": None if self.precision == AUTO else self.precision,
            "origin": dataclasses.asdict(self.origin) if self.origin else None,
            "procedure": _defining(self.procedure) if self.procedure else None,
        }
        names = ("global_batch_size", "epochs", "seed", "ghost_batch_size", "micro_batch_size", "loaded")
        more = ("test_points", "validation_fraction", "schedule", "patience", "target_loss")
        defining |= {name: getattr(self, name) for name in names + more}
        return digest({key: value for key, value in defining.items() if value is not None})

    @property
    def samples(self) -> dict[str, str]:
        """The digests of the splits that it reads: one that holds samples out never sees the test set."""
        found: Mapping[str, str] = self.data.get("samples", {})
        return {split: found[split] for split in found if split == "train" or self.split == "test"}

    @property
    def nodes(self) -> list[Node]:
        """All that it is computed by."""
        made = [self.network, self.data, self.loss, self.optimizer, *self.remedies]
        return made + ([self.procedure] if self.procedure else [])

    @property
    def kind(self) -> str:
        """What the seeds of a row share: all but the seed."""
        return dataclasses.replace(self, seed=0).id

    @property
    def split(self) -> str:
        """The split of its test curve: of a cell that holds samples out, these."""
        return "test" if self.validation_fraction is None else "validation"

    @property
    def asked_workers(self) -> int:
        """The workers that the cell asks for: one where it leaves them open."""
        return 1 if self.num_workers == AUTO else int(self.num_workers)

    @property
    def label(self) -> str:
        """What a person calls the cell: method, remedy, setting, origin and seed."""
        return f"{self.label_without_seed} seed {self.seed}"

    @property
    def label_without_seed(self) -> str:
        """The label that the seeds of a setting share."""
        begun = self.origin.epoch if self.origin else None
        parts = [method_label(self.method, self.remedy, self.role, begun), self.setting]
        if self.procedure:
            other = "" if self.remedy == "none" else f", {self.remedy}"
            parts = [f"{title(self.procedure)}, batch {self.global_batch_size}{other}"]
        if self.role in ("branch", "advised"):
            parts.append(f"rule {self.rule}")
        if self.role in ("workers", "precision") or self.procedure:
            several = "s" * (self.num_workers != 1)
            parts.append("" if self.num_workers == AUTO else f"on {self.num_workers} worker{several}")
            parts.append("" if self.precision == AUTO or self.procedure else f"in {self.precision}")
        return " ".join(part for part in parts if part)

    def columns(self) -> dict[str, Any]:
        """The columns that every row of the cell repeats."""
        return {
            "cell": self.id,
            "network": title(self.network),
            "data": title(self.data),
            "method": self.method,
            "remedy": self.remedy,
            "setting": self.setting,
            "procedure": title(self.procedure) if self.procedure else None,
            "global_batch_size": self.global_batch_size,
            "seed": self.seed,
            "role": self.role,
            "rule": self.rule,
            "origin_cell": self.origin.cell if self.origin else None,
            "origin_epoch": self.origin.epoch if self.origin else None,
        }

    def hyperparameters(self) -> dict[str, Any]:
        """The remedies' own numbers and words, each under its name; of several remedies, under both names.

        Example:
            >>> robust = {"_target_": "R", "name": "robust", "rho": 0.5, "search": {"rho": [0.2, 0.5]}}
            >>> Cell({}, {}, {}, {}, (robust,), 400, 20, 0).hyperparameters()
            {'rho': 0.5}
        """
        several = len(self.remedies) > 1
        return {
            f"{title(node)}.{key}" if several else key: value
            for node in self.remedies
            for key, value in node.items()
            if key not in ("_target_", "name") and isinstance(value, bool | int | float | str)
        }

    def record(self) -> dict[str, Any]:
        """The cell as plain JSON values."""
        return {**dataclasses.asdict(self), "keep": sorted(self.keep)}

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> Cell:
        """The cell that `record` gave."""
        origin = record["origin"]
        read = {"remedies": tuple(record["remedies"]), "keep": frozenset(record["keep"])}
        return cls(**{**record, **read, "origin": Origin(**origin) if origin else None})


INDEX = ".index.json"
"""How the file of names ends that says which shard of a checkpoint holds which tensor."""


def checkpoint_files(file: str) -> list[str]:
    """The files that a checkpoint consists of: itself, or an index and its shards.

    Raises:
        InputError: The index is none.
    """
    path = Path(file)
    if not path.name.endswith(INDEX):
        return [file]
    try:
        shards = sorted(set(json.loads(path.read_bytes())["weight_map"].values()))
        found = [file, *(str(path.parent / shard) for shard in shards)]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(f"checkpoint={file}: must hold a weight_map, from names to files") from error
    lost = [name for name in found if not Path(name).is_file()]
    if lost:
        raise InputError(f"checkpoint={file}: must have its shards beside it ({lost[0]} is missing)")
    return found


@dataclass(frozen=True)
class Point:
    """A model.

    Attributes:
        cell: The cell that it belongs to; of a file, what it is a model of.
        epoch: After which epoch of the cell; None for its last.
        file: A state dict of the user's, in safetensors or as `torch.save` writes it.
        entry: Which of several state dicts in the file; None for the model's own.
    """

    cell: Cell
    epoch: int | None = None
    file: str | None = None
    entry: str | None = None

    @functools.cached_property
    def key(self) -> list[Any]:
        """What tells the model apart: a file by its content, read once."""
        if self.file is None:
            return [self.cell.id, self.epoch]
        cell, content = self.cell, hashlib.sha256()
        for file in checkpoint_files(self.file):
            content.update(Path(file).read_bytes())
        of = [_defining(cell.network), _defining(cell.loss), cell.samples, cell.loaded, cell.seed]
        return [*of, content.hexdigest(), *([self.entry] if self.entry else [])]

    @property
    def id(self) -> str:
        """What the rows of a measurement call the model's cell: of a file, a hash of what it holds."""
        return self.cell.id if self.file is None else digest(self.key)


@dataclass(frozen=True)
class Measurement:
    """One measure at one or more models.

    Attributes:
        measure: Node of the measure; its `name` is the rows' `measure`.
        at: The models, as many as the measure takes.
    """

    measure: Node
    at: tuple[Point, ...]

    @functools.cached_property
    def id(self) -> str:
        """The measurement's content address."""
        return digest([_defining(self.measure), [point.key for point in self.at]])

    @property
    def code(self) -> str:
        """A digest of the code that measures here: lbdist's, and the user's measure, network and loss."""
        nodes = [node for point in self.at for node in (point.cell.network, point.cell.loss)]
        return digest(code.of([self.measure, *nodes]))

    def columns(self) -> dict[str, Any]:
        """The columns that every row of the measurement repeats, beside those of its first cell."""
        first, *others = self.at
        options = {key: value for key, value in _defining(self.measure).items() if key != "_target_"}
        return {
            "cell": first.id,
            "epoch": first.epoch,
            "other_cell": others[0].id if others else None,
            "measure": title(self.measure),
            "measurement": self.id,
            "code": self.code,
            "options": json.dumps(options, sort_keys=True),
        }


def name_setting(setting: Mapping[str, Any]) -> str:
    """A setting as text: `rho=0.5`."""
    return " ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in setting.items())
