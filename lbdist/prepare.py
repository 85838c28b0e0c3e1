"""From a configuration to a session: all is built once, and all that could refuse it is tried."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import torch
from omegaconf import DictConfig, OmegaConf

from lbdist import networks
from lbdist.analysis.runs import Score
from lbdist.config.build import build
from lbdist.config.schema import Config
from lbdist.data.base import Dataset, DataSource, is_integer, on_device
from lbdist.errors import InputError, require
from lbdist.losses import Loss
from lbdist.objective import Objective
from lbdist.plan import Cell, Node, held_out, name_setting, title
from lbdist.remedies.base import Remedy, make_remedy
from lbdist.serial import SerialSession
from lbdist.session import Session
from lbdist.sharpness.measure import Measure
from lbdist.studies.base import Candidates, Plan, Study
from lbdist.studies.paper import Paper
from lbdist.training import checkpoint, rehearsal
from lbdist.tuning import search_space


def prepare(config: DictConfig, parts: Mapping[str, DictConfig] | None = None) -> Session:
    """Builds everything that a configuration names, once, and tries every way in which a run could refuse it.

    Args:
        config: Composed and checked; `derived` is filled in here.
        parts: The configurations of the studies that it consists of, by name, likewise.

    Raises:
        InputError: What is wrong, before anything is written or a worker starts.
    """
    source: DataSource = build(config.data, "data", kind=DataSource)
    loss: Loss = build(config.loss, "loss", kind=Loss)
    data = source.load(config.scale.samples)
    outputs, inputs, labels = loss.check(data), data.train.inputs, data.train.labels
    if len(labels) > 1 and (labels == labels[0]).all():  # a network that ignores its input would be right
        raise InputError(f"data: every label of the train split is {labels[0]}; must be of two kinds or more")
    count = outputs[-1] if outputs else 1
    derived = {
        "inputs": int(torch.Size(data.shape).numel()),
        "channels": int(data.shape[0]) if data.shape else 1,
        "classes": count,
        "outputs": count,
        "tokens": 1 + int(inputs.max()) if inputs.dtype.kind in "iu" and inputs.dtype != "uint8" else 0,
    }
    for each in (config, *(parts or {}).values()):
        each.derived.update(derived)
        OmegaConf.resolve(each)
    text = OmegaConf.to_yaml(config)
    settings: Config = OmegaConf.to_object(config)  # type: ignore[assignment]
    networks.check_start(settings.network)
    network = networks.make(settings.network)
    networks.check(network)
    network = network.float()
    flops = networks.sample_flops(network, inputs[:2], outputs)
    node = _data_node(settings.data, source, data)
    made = functools.partial(
        _study, train_size=len(data.train), data=node, score=loss.score,
        parameters=networks.parameter_count(network),
    )  # fmt: skip
    study = made(settings)
    if isinstance(study, Paper):
        study.studies = {
            name: made(OmegaConf.to_object(part))  # type: ignore[arg-type]
            for name, part in (parts or {}).items()
        }
    for file in sorted({point.file for m in study.measurements([]) for point in m.at if point.file}):
        checkpoint.load_file(network, file)
    given = settings, text, data, study, Score(loss.score, loss.unit), flops, source
    session: Session
    if settings.executor == "serial":
        session = SerialSession(*given)
    else:
        from lbdist.distributed import RaySession  # so that serial runs need no Ray

        session = RaySession(*given)
    alike = {
        (cell.remedy, cell.setting, cell.stage == "search", cell.precision): cell
        for cell in session.cells.values()
    }
    for cell in alike.values():
        _check_run(cell, len(data.train))
    known = getattr(study, "procedures", {})
    for name, procedure in {
        title(c.procedure): c.procedure for c in session.cells.values() if c.procedure
    }.items():
        build(procedure, f"study.procedures.{name}" if name in known else f"study.{name}")
    learners = {
        (repr(c.optimizer), c.ghost_batch_size, c.micro_batch_size, c.precision): c for c in alike.values()
    }
    for cell in learners.values():
        rehearsal.rehearse(cell, data)
    if study.plan.measures or isinstance(study, Paper):
        few = on_device(data.train.first(16), "cpu")
        f = Objective(networks.make(settings.network), few, loss=loss)
        f(f.x)
    return session


def _study(settings: Config, *, train_size: int, data: Node, score: str, parameters: int) -> Study:
    """The study of a configuration, with the plan that it makes its cells of."""
    remedies = {
        name: _candidates(name, node, settings.search.samples) for name, node in settings.remedy.items()
    }
    remedies.pop("none", None)
    measures: dict[str, tuple[Node, Measure]] = {
        name: (node, build(node, f"measure.{name}", kind=Measure))
        for name, node in settings.measure.items()
        # a study may have settings for a measure that was not chosen
        if not isinstance(node, Mapping) or "_target_" in node
    }
    for name, (_, measure) in measures.items():
        try:
            measure.check(parameters)
        except InputError as error:
            raise InputError(f"measure.{name}.{error}") from error
    study: Study = build(settings.study, "study", kind=Study)
    study.plan = Plan(
        settings, train_size=train_size, remedies=remedies, measures=measures, data=data, score=score
    )
    study.check()
    for name, (_, measure) in measures.items():
        allowed = "a measure of one model" if study.points == (1,) else "a measure of one or two models"
        require(measure.points in study.points, "measure", name, allowed)
    return study


def _data_node(node: Node, source: DataSource, data: Dataset) -> Node:
    """A data set's node without where it lies, with the samples that the study's scale has left of it."""
    kept = {key: value for key, value in node.items() if key not in source.place}
    for key, split in (("train_samples", data.train), ("test_samples", data.test)):
        if source.totals.get(key, 0) > len(split):
            kept[key] = len(split)
    return kept


def _check_run(cell: Cell, train_size: int) -> None:
    """Refuses remedies and batches that a run of this kind could not have."""
    make_remedy(cell.remedies)
    key, batch = f"remedy.{cell.remedy}.cell", cell.global_batch_size
    if cell.validation_fraction is not None:
        held = held_out(train_size, cell.validation_fraction)
        least = f"at least {1 / train_size:.2g}, a sample of {train_size}"
        require(held >= 1, "search.validation_fraction", cell.validation_fraction, least)
    limit = train_size - held_out(train_size, cell.validation_fraction)
    allowed = f"at most {limit}, the samples that are trained on"
    require(batch <= limit, f"{key}.global_batch_size", batch, allowed)
    ghost, micro = cell.ghost_batch_size, cell.micro_batch_size
    if ghost and micro:
        require(
            micro % ghost == 0, f"{key}.micro_batch_size", micro, f"a multiple of ghost_batch_size={ghost}"
        )


def _candidates(name: str, node: Mapping[str, object], samples: int) -> Candidates:
    """A remedy with its settings, each of which can be built."""
    key = f"remedy.{name}"
    build(node, key, kind=Remedy)
    _check_cell(key, node.get("cell") or {})
    settings = search_space.settings(node.get("search"), samples, key)  # type: ignore[arg-type]
    different = len({name_setting(setting) for setting in settings})
    require(
        different >= max(1, len(settings)), f"{key}.search", node.get("search"), "lists of different values"
    )
    for setting in settings:
        build({**node, **setting}, key)
    return Candidates({**node, "name": name}, settings)


def _check_cell(key: str, own: object) -> None:
    """Refuses fields that a remedy may not set for its cells."""
    batches = ("global_batch_size", "ghost_batch_size", "micro_batch_size")
    allowed = ("optimizer", "epochs", *batches)
    if not (isinstance(own, Mapping) and set(own) <= set(allowed)):
        raise InputError(f"{key}.cell={own}: must be a group of {', '.join(allowed)}")
    for name, value in own.items():
        if name == "optimizer":
            require(isinstance(value, Mapping), f"{key}.cell.optimizer", value, "a group of keys")
        else:
            require(is_integer(value, 1), f"{key}.cell.{name}", value, "a whole number of at least 1")
