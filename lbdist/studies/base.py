"""What a study is: a stateless function of what is finished.

It is asked for its cells again after every cell that ends; what it cannot know yet, it does not yield. A dry
run, a run, a resumed run and a report are the same call. Rules: the same `done` gives the same cells; a cell
once yielded stays while more finish; only cells already yielded are asked about.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, ClassVar, Protocol

from lbdist.analysis.runs import Runs
from lbdist.analysis.section import Section
from lbdist.config.schema import Config
from lbdist.errors import require
from lbdist.plan import COUNTED, Cell, Measurement, Node, Point, Role, held_out, name_setting
from lbdist.results import final_name
from lbdist.rules import scaled

Final = Mapping[str, float]
"""Final metrics of a finished cell; empty for one that failed in this run."""

Done = Callable[[Cell], Final | None]
"""None while a cell's rows, or a model that it keeps, are missing."""


class Measured(Protocol):
    """What a study asks of a measure.

    Attributes:
        points: At how many models one measurement is made.
    """

    points: ClassVar[int]

    def parts(self, node: Node, cell: Cell) -> list[Node]:
        """The nodes of the single measurements at a cell."""


@dataclass(frozen=True)
class Candidates:
    """A remedy with the settings to choose among: hyperparameter overrides, at least one.

    Attributes:
        node: The remedy's node; its `cell` holds fields of the cells that it takes part in.
        settings: What the search space yields.
    """

    node: Node
    settings: Sequence[Mapping[str, Any]]


class Plan:
    """What a study makes its cells of: the configuration, and what was learnt from the data.

    Args:
        config: The configuration, checked and resolved.
        train_size: Samples in the training set.
        remedies: The remedies by name, `none` aside.
        measures: The measures by name, each with its node.
        data: The data set's node, with the digests of its `samples`.
        loaded: Digest of what the network begins with whatever the seed; None if there is nothing.
        score: The metric that the search maximises.
        highest: The highest value that it can have.

    Attributes:
        combinations: Remedies together, each once.
        small_batch: SB's global batch, in samples.
        large_batch: LB's global batch, in samples.
        devices: Data-parallel workers for which there is room; None where that is not known yet.

    Raises:
        InputError: A batch that is larger than the training set, or SB's than LB's.
    """

    def __init__(
        self,
        config: Config,
        *,
        train_size: int,
        remedies: Mapping[str, Candidates],
        measures: Mapping[str, tuple[Node, Measured]],
        data: Node,
        loaded: str | None = None,
        score: str = "accuracy",
        highest: float = 100.0,
    ) -> None:
        self.config, self.train_size, self.score, self.highest = config, train_size, score, highest
        self.remedies, self.measures = remedies, measures
        self.devices: int | None = None
        self._made: dict[str, Cell] = {}
        schedule, rate = config.schedule, None
        if schedule.decay != "constant" or schedule.warmup:
            rate = {"warmup": schedule.warmup, "decay": schedule.decay}
        if rate and schedule.decay == "step":
            rate |= {"milestones": schedule.milestones, "gamma": schedule.gamma}
        fields = ["network", "loss", "epochs", "num_workers", "ghost_batch_size", "micro_batch_size"]
        fields += ["test_points", "precision", "patience"]
        self._common = {**{name: getattr(config, name) for name in fields}, "data": data, "schedule": rate}
        self._common["loaded"] = loaded
        self.large_batch = self.batch(config.large_batch)
        self.small_batch = self.batch(config.small_batch)
        held = held_out(train_size, config.search.validation_fraction) if self.searched else 0
        # a cell is what it trains, so that two batches of one size would be one method
        self.check_batch("small_batch", config.small_batch, self.large_batch - 1, "less than the large batch")
        allowed = train_size - held
        self.check_batch("large_batch", config.large_batch, allowed, "the samples that are trained on")
        self.combinations = [list(names) for names in dict.fromkeys(map(tuple, config.combinations))]
        for names in self.combinations:
            wrong = next((name for name in names if name not in remedies), None)
            allowed_names = f"of remedies of the study: {', '.join(remedies) or 'it has none'}"
            require(wrong is None, "combinations", names, allowed_names)
            require(len(set(names)) == len(names) > 1, "combinations", names, "of two or more remedies")

    @property
    def searched(self) -> list[str]:
        """The remedies that have more than one setting to choose among."""
        return [name for name, found in self.remedies.items() if len(found.settings) > 1]

    @property
    def seeds(self) -> range:
        """The seeds of confirmed runs."""
        return range(self.config.seeds)

    def batch(self, given: float) -> int:
        """A global batch in samples, from samples or a share of the training set."""
        return max(1, round(given * self.train_size)) if given < 1 else int(given)

    def check_batch(self, field: str, given: float, limit: int, what: str) -> None:
        """Refuses a batch above a limit."""
        shown = int(given) if given >= 1 else given
        require(self.batch(given) <= limit, field, shown, f"a batch of at most {limit}, {what}")

    def within(self, devices: int) -> Plan:
        """The plan on so many devices."""
        found = copy.copy(self)
        found.devices = devices
        return found

    def fits(self, workers: int) -> bool:
        """Whether there are as many devices, as far as is known."""
        return self.devices is None or workers <= self.devices

    def cell(
        self,
        method: str | int,
        remedies: Mapping[str, Mapping[str, Any]] | None = None,
        *,
        seed: int,
        role: Role = "confirm",
        rule: str | None = None,
        longest: float = 1.0,
        **changes: Any,
    ) -> Cell:
        """A cell, made once: a study is asked for all of them after each that ends.

        Args:
            method: `SB` or `LB`, or a global batch in samples.
            remedies: The setting of each remedy that takes part.
            seed: The run's seed.
            role: What it is for; a search holds out a validation split and takes `search.epochs` of the
                epochs.
            rule: How the learning rate follows the batch; None for the configuration's `lr_rule`.
            longest: So many times the epochs are its cap.
            changes: Fields of the cell that are not as the configuration says: `num_workers`, `precision`,
                `origin`, `keep`, `procedure`, `target_loss` (at which it ends, instead of any patience).
        """
        config, searching, remedies = self.config, role in ("search", "advised"), remedies or {}
        key = repr((method, dict(remedies), seed, role, rule, longest, changes))
        if key in self._made:
            return self._made[key]
        batch = {"SB": self.small_batch, "LB": self.large_batch}.get(str(method)) or int(method)
        fields: dict[str, Any] = {**self._common, "global_batch_size": batch}
        nodes: list[Node] = []
        optimizer: dict[str, Any] = {}
        for name, setting in remedies.items():
            node = self.remedies[name].node
            nodes.append({key: v for key, v in node.items() if key not in ("search", "cell")} | dict(setting))
            own = dict(node.get("cell") or {})
            optimizer |= own.pop("optimizer", {})
            fields |= own
        rule = rule or config.lr_rule
        rated = scaled(config.optimizer, rule, fields["global_batch_size"], self.small_batch)
        fields["optimizer"] = {**rated, **optimizer}
        fields["epochs"] = math.ceil(fields["epochs"] * (config.search.epochs if searching else longest))
        if searching:
            fields["validation_fraction"] = config.search.validation_fraction
        if changes.get("target_loss") is not None:
            fields["patience"] = None
        made = self._made[key] = Cell(
            **{**fields, **changes},
            remedies=tuple(nodes),
            seed=seed,
            method=self.called(batch),
            remedy="+".join(remedies) or "none",
            setting=", ".join(name_setting(setting) for setting in remedies.values() if setting),
            role=role,
            rule=rule,
        )
        return made

    def called(self, batch: int) -> str:
        """What a method of this global batch is called: SB, LB, or by its batch."""
        return {self.large_batch: "LB", self.small_batch: "SB"}.get(batch, f"batch {batch}")

    def measured(self, cell: Cell) -> Iterator[Node]:
        """The nodes of what is measured at a cell's model."""
        for name, (node, measure) in self.measures.items():
            yield from ({**part, "name": name} for part in measure.parts(node, cell))


class Study(ABC):
    """One shape of experiment. A subclass is a dataclass: its fields are the keys `study.*`.

    Attributes:
        points: How many models a measure of the study may take.
        plan: What the cells are made of, set before anything is asked.
        studies: The studies that it consists of, by name, set likewise; most consist of none.
    """

    points: ClassVar[tuple[int, ...]] = (1,)
    plan: Plan
    studies: Mapping[str, Study] = MappingProxyType({})

    def check(self) -> None:
        """Refuses settings that do not fit the plan.

        Raises:
            InputError: With the key that is wrong.
        """

    @abstractmethod
    def cells(self, done: Done) -> Iterator[Cell]:
        """The cells that are known, given what is done."""

    def measurements(self, done: Done) -> Iterator[Measurement]:
        """What is measured, given what is done: by default every measure at every end that is counted."""
        for cell in ended(self, done):
            yield from (Measurement(node, (Point(cell),)) for node in self.plan.measured(cell))

    @property
    def procedure_nodes(self) -> dict[str, Node]:
        """The nodes of what its cells run instead of training, by their keys; by default none."""
        return {}

    def within(self, devices: int) -> Study:
        """The study on so many devices, each of which takes one worker of a group."""
        found = copy.copy(self)
        found.plan = self.plan.within(devices)
        found.studies = {name: study.within(devices) for name, study in self.studies.items()}
        return found

    def left_out(self) -> list[str]:
        """A line for each thing that is left out, since it needs more devices than there are."""
        return list(dict.fromkeys(line for study in self.studies.values() for line in study.left_out()))

    def models(self) -> dict[str, Mapping[str, Any]]:
        """The columns of models that are no cell's, by the id that their rows have; by default none."""
        return {}

    def derived(self, runs: Runs) -> list[dict[str, Any]]:
        """Rows that are computed of the study's others, such as a model's parameters; by default none."""
        return []

    def check_parts(self) -> None:
        """Refuses studies that it cannot consist of.

        Raises:
            InputError: With what is wrong.
        """

    def swept(self, done: Done) -> Mapping[str, Sequence[str]]:
        """Of a sweep, the points that each cell and each measurement belongs to, by id; by default none."""
        return {}

    def told(self, done: Done) -> Mapping[str, Mapping[str, Any]]:
        """Of a sweep, what each cell is told by, by id, beside what it says of itself; by default nothing."""
        return {}

    @abstractmethod
    def sections(self, runs: Runs, done: Done) -> list[Section]:
        """What is shown of the runs."""


def chosen_epochs(given: Any, last: int, patience: int | None) -> list[int]:
    """The epochs of a run that `study.epochs` names: numbers, shares of all of them below 1, or `all`.

    Raises:
        InputError: An epoch that the run does not reach.

    Example:
        >>> chosen_epochs([1, 0.5, 20], 20, None), chosen_epochs("all", 3, None)
        ([1, 10, 20], [1, 2, 3])
    """
    require(patience is None, "patience", patience, "null: a run must reach the epochs that are asked for")
    if given == "all":
        return list(range(1, last + 1))
    allowed = f"all, or a list of epochs from 1 to {last}, or shares of them below 1"
    require(isinstance(given, list) and len(given) > 0, "study.epochs", given, allowed)
    for epoch in given:
        good = isinstance(epoch, int | float) and not isinstance(epoch, bool)
        good = good and (0 < epoch < 1 or (1 <= epoch <= last and float(epoch).is_integer()))
        require(good, "study.epochs", given, allowed)
    return sorted({max(1, round(epoch * last)) if epoch < 1 else int(epoch) for epoch in given})


def chosen_batches(plan: Plan, given: list[Any]) -> list[int]:
    """The global batches that `study.batches` names: samples, shares of the training set below 1, or `full`.

    Raises:
        InputError: There are none, or one that the training set does not have.
    """
    allowed = "samples, a share of the training set between 0 and 1, or full"
    require(len(given) > 0, "study.batches", [], "one or more batches")
    for batch in given:
        good = isinstance(batch, int | float) and not isinstance(batch, bool)
        good = good and (0 < batch < 1 or (batch >= 1 and float(batch).is_integer()))
        require(good or batch == "full", "study.batches", given, allowed)
        if batch != "full":
            plan.check_batch("study.batches", batch, plan.train_size, "the samples that are trained on")
    return sorted({plan.train_size if batch == "full" else plan.batch(batch) for batch in given})


@dataclass
class OverEpochs(Study):
    """A study of the models that runs keep after some of their epochs.

    Attributes:
        epochs: After which epochs: numbers, or shares of all of them below 1; or `all`.
    """

    epochs: Any = "all"

    def check(self) -> None:
        """The epochs are among the run's, which runs all of them."""
        self.chosen()

    def chosen(self) -> list[int]:
        """The epochs as numbers."""
        return chosen_epochs(self.epochs, self.plan.config.epochs, self.plan.config.patience)


def whole(study: Study) -> Done:
    """A `done` by which all is over and nothing stands out: the study's cells are then all of them."""
    return lambda cell: {final_name(study.plan.score, "validation"): 0.0}


def at_point(told: Mapping[str, Mapping[str, Any]], cell: Cell) -> str:
    """What a cell of a sweep is told apart by, as it follows its label; empty where there is no sweep."""
    return "".join(f" {key}={value}" for key, value in told.get(cell.id, {}).items())


def expected_of(study: Study, done: Done) -> dict[str, Cell]:
    """The study's cells by id, with what is still to come of them as far as it can be told."""
    assumed = whole(study)

    def then(cell: Cell) -> Final | None:
        known = done(cell)
        return assumed(cell) if known is None else known

    return cells_of(study, then)


def ended(study: Study, done: Done, roles: Collection[Role] = COUNTED) -> list[Cell]:
    """The cells of some roles that have a model at their end: finished, and not diverged."""
    finals = ((cell, done(cell)) for cell in cells_of(study, done).values() if cell.role in roles)
    return [cell for cell, final in finals if final and not final.get("diverged")]


def along_runs(study: Study, done: Done) -> Iterator[Measurement]:
    """Every measure at every model that counted cells keep, and at their last."""
    for cell in ended(study, done):
        for epoch in (*sorted(cell.keep), None):
            yield from (Measurement(node, (Point(cell, epoch),)) for node in study.plan.measured(cell))


def cells_of(study: Study, done: Done) -> dict[str, Cell]:
    """The study's cells by id; one that is yielded twice is one cell, which keeps what either keeps."""
    found: dict[str, Cell] = {}
    for cell in study.cells(done):
        known = found.get(cell.id)
        if known is None:
            found[cell.id] = cell
        else:
            found[cell.id] = replace(known, keep=known.keep | cell.keep)
    return found
