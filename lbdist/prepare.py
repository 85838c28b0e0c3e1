"""From a configuration to a session: all is built once, and all that could refuse it is tried."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import nn

from lbdist import networks
from lbdist.analysis.runs import Score
from lbdist.config.build import build
from lbdist.config.schema import PRECISIONS, Config, check_micro_batch, one_of
from lbdist.data.base import Dataset, DataSource, are_tokens, is_integer, on_device
from lbdist.errors import InputError, require
from lbdist.losses import Loss
from lbdist.objective import Objective
from lbdist.plan import AUTO, Cell, Node, held_out, name_setting, title
from lbdist.remedies.base import Remedy, make_remedy
from lbdist.serial import SerialSession
from lbdist.session import Session
from lbdist.sharpness.measure import Measure
from lbdist.studies.base import Candidates, Plan, Study, at_point, whole
from lbdist.training import rehearsal, user_checkpoint
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
    data = source.load(config.scale.get("samples"))
    outputs = loss.check(data)
    _fill_in([config, *(parts or {}).values()], data, outputs)
    notes = _left_out([config, *(parts or {}).values()], data)
    settings: Config = OmegaConf.to_object(config)  # type: ignore[assignment]
    made: dict[str, Config] = {
        name: OmegaConf.to_object(part)  # type: ignore[misc]
        for name, part in (parts or {}).items()
    }
    known: dict[str, tuple[nn.Module, str | None, float]] = {}
    for one in (settings, *made.values()):  # a sweep may be over a network's own keys
        if repr(one.network) not in known:
            known[repr(one.network)] = _network(one, data, outputs)
    network, _, flops = known[repr(settings.network)]
    study = make_study(
        settings,
        made,
        {key: (networks.parameter_count(each), loaded) for key, (each, loaded, _) in known.items()},
        train_size=len(data.train),
        data={**settings.data, "samples": {"train": data.train.digest, "test": data.test.digest}},
        score=loss.score,
        highest=loss.highest,
    )
    own = study.measurements(lambda cell: None)  # at files, which need no cell
    for file, entry in sorted({(p.file, p.entry) for m in own for p in m.at if p.file}):
        _, note = user_checkpoint.read(network, file, entry)
        notes += [f"{Path(file).name}: {note}"] if note else []
    score = Score(loss.score, loss.unit, loss.chance(data), loss.loss_unit)
    given = settings, OmegaConf.to_yaml(config), data, study, score, flops, source, notes
    session: Session
    if settings.executor == "serial":
        session = SerialSession(*given)
    else:
        from lbdist.distributed import RaySession  # so that serial runs need no Ray

        session = RaySession(*given)
    _try_out(study, session.cells.values(), data, loss)
    return session


def _try_out(study: Study, cells: Collection[Cell], data: Dataset, loss: Loss) -> None:
    """Tries what the study is going to do, on a few samples."""
    every = (study, *study.studies.values())
    for each in every:
        for key, node in each.procedure_nodes.items():
            build(node, key)
    _check_cells(study, cells, data)
    few = on_device(data.train.first(16), "cpu")
    measured = (each.plan.config.network for each in every if each.plan.measures)
    for node in {repr(node): node for node in measured}.values():
        f = Objective(networks.make(node), few, loss=loss)
        f(f.x)


def _fill_in(configs: Sequence[DictConfig], data: Dataset, outputs: tuple[int, ...]) -> None:
    """Fills in what networks take from the data and the loss.

    Raises:
        InputError: There is but one label, so that a network which ignores its input would be right.
    """
    inputs, labels = data.train.inputs, data.train.labels
    if len(labels) > 1 and (labels == labels[0]).all():
        raise InputError(f"data: every label of the train split is {labels[0]}; must be of two kinds or more")
    count = outputs[-1] if outputs else 1
    derived = {
        "inputs": int(torch.Size(data.shape).numel()),
        "channels": int(data.shape[0]) if data.shape else 1,
        "classes": count,
        "outputs": count,
        "tokens": 1 + int(inputs.max()) if are_tokens(inputs) else 0,
    }
    for config in configs:
        if data.mean:
            with open_dict(config.network):
                config.network["scaled"] = {"mean": list(data.mean), "std": list(data.std)}
        for key, value in config.network.items():  # workers have another working directory
            if isinstance(value, str) and "\0" not in value and Path(value).is_file():
                config.network[key] = str(Path(value).absolute())
        config.derived.update(derived)
        OmegaConf.resolve(config)


def _left_out(configs: Sequence[DictConfig], data: Dataset) -> list[str]:
    """Takes out the remedies that the data cannot have, with their combinations; a line for each."""
    found = {}
    for config in configs:
        for name, node in list(config.remedy.items()):
            why = build(node, f"remedy.{name}", kind=Remedy).leaves_out(data)
            if why:
                found[name] = f"remedy {name} is left out: {why}"
                with open_dict(config.remedy):
                    del config.remedy[name]
        kept = [list(names) for names in config.combinations if not set(names) & set(found)]
        config.combinations = kept
    return list(found.values())


def _network(
    settings: Config, data: Dataset, outputs: tuple[int, ...]
) -> tuple[nn.Module, str | None, float]:
    """The network, which can be measured, a digest of what it loads, and the FLOPs of a sample."""
    loaded = networks.check_start(settings.network)
    network = networks.make(settings.network)
    networks.check(network)
    network = network.float()
    return network, loaded, networks.sample_flops(network, data.train.inputs[:2], outputs)


def _check_cells(study: Study, cells: Collection[Cell], data: Dataset) -> None:
    """Refuses what cells of one kind could not have, and takes a step of each kind of learner."""
    told = study.told(whole(study))
    alike = {(at_point(told, c), c.remedy, c.setting, c.split, c.precision): c for c in cells}
    for cell in alike.values():
        _check_run(cell, len(data.train))
    learners = {
        (repr(c.network), c.remedy, repr(c.optimizer), c.ghost_batch_size, c.micro_batch_size, c.precision): c
        for c in alike.values()
    }
    optimizers: set[str] = set()
    for cell in learners.values():
        rehearsal.rehearse(cell, data, thorough=repr(cell.optimizer) not in optimizers)
        optimizers.add(repr(cell.optimizer))


def make_study(
    settings: Config,
    parts: Mapping[str, Config],
    known: Mapping[str, tuple[int, str | None]],
    **learnt: Any,
) -> Study:
    """The study of a configuration, with the plans that it and its parts make their cells of.

    Args:
        settings: The configuration.
        parts: Those of the studies that it consists of, by name.
        known: Of each network, by its node's `repr`, the parameters, and a digest of what it loads.
        learnt: What a plan takes beside configuration, remedies and measures.

    Raises:
        InputError: A setting that does not fit, naming its key.
    """
    study = _planned(settings, known, learnt)
    study.studies = {name: _planned(part, known, learnt) for name, part in parts.items()}
    study.check_parts()
    return study


def _planned(
    settings: Config, known: Mapping[str, tuple[int, str | None]], learnt: Mapping[str, Any]
) -> Study:
    """A study with its plan, checked."""
    parameters, loaded = known[repr(settings.network)]
    remedies = {
        name: _candidates(name, node, settings.search.samples) for name, node in settings.remedy.items()
    }
    remedies.pop("none", None)
    measures: dict[str, tuple[Node, Measure]] = {
        name: (_of_sets(node), build(_of_sets(node), f"measure.{name}", kind=Measure))
        for name, node in settings.measure.items()
        # a study may have settings for a measure that was not chosen
        if not isinstance(node, Mapping) or "_target_" in node
    }
    for name, (_, measure) in measures.items():
        try:
            measure.check(parameters)
            measure.check_samples(learnt["train_size"])
        except InputError as error:
            raise InputError(f"measure.{name}.{error}") from error
    study: Study = build(_of_sets(settings.study), "study", kind=Study)
    study.plan = Plan(settings, remedies=remedies, measures=measures, loaded=loaded, **learnt)
    study.check()
    for name, (_, measure) in measures.items():
        allowed = "a measure of one model" if study.points == (1,) else "a measure of one or two models"
        require(measure.points in study.points, "measure", name, allowed)
    return study


def _of_sets(node: Any) -> Any:
    """The node of a study or a measure, whose lists are sets: what is asked for twice is done once."""
    if not isinstance(node, Mapping):
        return node  # refused as it is built
    return {
        key: [v for at, v in enumerate(value) if v not in value[:at]] if isinstance(value, list) else value
        for key, value in node.items()
    }


def _check_run(cell: Cell, train_size: int) -> None:
    """Refuses remedies and batches that a run of this kind could not have."""
    make_remedy(cell.remedies)
    own = f"study.procedures.{title(cell.procedure)}." if cell.procedure else ""
    known = (AUTO, *PRECISIONS)
    require(cell.precision in known, f"{own}precision", cell.precision, one_of(known))
    key, batch = f"remedy.{cell.remedy}.cell", cell.global_batch_size
    if cell.validation_fraction is not None:
        held = held_out(train_size, cell.validation_fraction)
        least = f"at least {1 / train_size:.2g}, a sample of {train_size}"
        require(held >= 1, "search.validation_fraction", cell.validation_fraction, least)
    limit = train_size - held_out(train_size, cell.validation_fraction)
    allowed = f"at most {limit}, the samples that are trained on"
    require(batch <= limit, f"{key}.global_batch_size", batch, allowed)
    check_micro_batch(f"{key}.micro_batch_size", cell.micro_batch_size, cell.ghost_batch_size)


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
