"""What people type, and what lbdist calls it: the way on after a key or a choice that there is not."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import pkgutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from lbdist.config.choices import SEVERAL, config_root, file, options
from lbdist.config.schema import Config, RateSchedule, Search

KEYS = {
    "batch_size": "SB's is small_batch, LB's large_batch",
    "lr": "optimizer.lr",
    "weight_decay": "optimizer=adamw and sgd have optimizer.weight_decay",
    "momentum": "optimizer=sgd has optimizer.momentum",
    "model": "network= is one of lbdist's, network._target_= any class that Python can import",
    "dataset": "data",
    "criterion": "loss",
    "seed": "runs begin at seeds 0, 1, ...; seeds= is how many",
    "workers": "num_workers",
    "output_dir": "storage",
    "data_dir": "data.root",
    "scheduler": "schedule.decay",
    "warmup": "schedule.warmup",
    "amp": "precision",
    "debug": "executor=serial runs in this process",
    "resume": "the same command, given once more, goes on: what is finished is kept",
    "device": "all GPUs are used that CUDA_VISIBLE_DEVICES leaves; num_workers= is how many a run takes",
    "num_classes": "lbdist's networks ask the data; another one's is network.num_classes",
    "max_steps": "epochs",
    "remedies": "remedy",
    "metric": "measure",
    "evaluations": "test_points",
    "replicas": "seeds_at_once",
    "data.image": "data.inputs",
    "data.path": "data.root",
}  # fmt: skip
"""The way on by what is typed: a key, or a sentence."""

_SAME = {
    "batch_size": "batch bs batchsize global_batch_size train_batch_size batches",
    "lr": "learning_rate learningrate base_lr max_lr",
    "model": "arch net backbone models",
    "dataset": "datasets ds task",
    "criterion": "loss_fn objective",
    "weight_decay": "wd l2",
    "seed": "num_seeds n_seeds random_seed",
    "workers": "n_workers world_size nproc nproc_per_node num_processes nodes",
    "output_dir": "out out_dir save_dir results_dir log_dir logdir results",
    "data_dir": "root data_path data_root path",
    "scheduler": "lr_scheduler lr_schedule decay",
    "warmup": "warmup_epochs warm_up",
    "amp": "mixed_precision fp16 bf16 half dtype",
    "device": "devices gpu gpus num_gpus n_gpus cuda accelerator use_gpu",
    "debug": "local serial",
    "resume": "restart resume_from restore",
    "max_steps": "steps iterations num_epochs n_epochs max_epochs epoch",
    "metric": "metrics measures",
    "data.path": "data.dir data.folder data.file data.data_dir",
}
_KEYS = {**KEYS, **{other: KEYS[key] for key, others in _SAME.items() for other in others.split()}}

CHOICES = {
    "data": {"imagefolder": "folder", "images": "folder", "csv": "table", "tsv": "table", "npz": "arrays",
             "npy": "arrays", "numpy": "arrays", "safetensors": "arrays", "webdataset": "tar",
             "huggingface": "parquet", "hf": "parquet", "fashionmnist": "fashion_mnist"},
    "loss": {"mse": "mean_squared_error", "l2": "mean_squared_error", "bce": "binary_cross_entropy",
             "ce": "cross_entropy", "nll": "cross_entropy", "language_model": "tokens"},
    "measure": {"hessian": "spectrum", "eigenvalues": "spectrum", "sam": "ball", "m_sharpness": "ball",
                "trace": "spectrum", "gns": "noise_scale", "asam": "adaptive"},
}  # fmt: skip
"""Other names of choices."""

_NEAR = 0.7
"""How alike words must be for one to be thought meant."""


def of_key(key: str, overrides: Sequence[str], folders: Sequence[Path]) -> str:
    """What was meant by a key that there is not, as it follows the complaint; empty where nobody can tell.

    Args:
        key: The key.
        overrides: The command line's.
        folders: Folders of the user's own.
    """
    if key in _KEYS:
        return _said(_KEYS[key])
    group, _, rest = key.partition(".")
    if not rest:
        known = [field.name for field in dataclasses.fields(Config) if field.name != "derived"]
        return _near(key, [*known, "experiment"])
    if group in SEVERAL:
        member, _, last = rest.partition(".")
        return _within(
            f"{group}.{member}",
            last,
            [name for name in file(group, member, folders).get(member) or {} if name != "_target_"],
        )
    if group in ("network", "data", "optimizer", "loss"):
        return _of_node(group, rest, overrides, folders)
    parts: dict[str, type] = {"search": Search, "schedule": RateSchedule}
    names = [field.name for field in dataclasses.fields(parts[group])] if group in parts else []
    return _within(group, rest, names)


def _said(way: str) -> str:
    return f"; {way}" if " " in way else f"; did you mean {way}?"


def _near(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=_NEAR)
    return f"; did you mean {near[0]}?" if near else ""


def _within(node: str, name: str, known: Sequence[str], what: str = "") -> str:
    """Of a key of a node, whose others are listed where none is near."""
    if near := _near(name, known):
        return near.replace("mean ", f"mean {node}.")
    return f"; {what or node} has {', '.join(known)}" if known else ""


def _of_node(group: str, rest: str, overrides: Sequence[str], folders: Sequence[Path]) -> str:
    """Of a key of the network, the data, the optimiser or the loss that was chosen."""
    values = dict(text.lstrip("+").partition("=")[::2] for text in overrides)
    member = values.get(group, _default(group))
    node = file(group, member, folders)
    target = values.get(f"{group}._target_", node.get("_target_", ""))
    taken, free = _arguments(target)
    own = {"_target_", "name", "init"}
    known = [*taken, *(name for name in node if name not in {*taken, *own})]
    if rest in taken or (free and "." not in rest and _near(rest, known) == ""):
        return f"; {target} takes it as +{group}.{rest}=..."
    if rest in _KEYS and group in _KEYS[rest]:
        return _said(_KEYS[rest])
    return _within(group, rest, known, f"{group}={member}")


def _default(group: str) -> str:
    """The choice of a group where none is made."""
    defaults = yaml.safe_load((config_root() / "config.yaml").read_text())["defaults"]
    return str(next((one[group] for one in defaults if isinstance(one, dict) and group in one), ""))


def _arguments(target: str) -> tuple[list[str], bool]:
    """The names of a class's arguments, and whether it takes others."""
    try:
        parameters = inspect.signature(pkgutil.resolve_name(target)).parameters.values()
    except (ImportError, AttributeError, TypeError, ValueError):
        return [], False
    named = [one.name for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
    others = any(one.kind is one.VAR_KEYWORD for one in parameters)
    return [name for name in named if name != "params"], others


def of_choice(group: str, name: Any, folders: Sequence[Path]) -> str:
    """What was meant by a choice that a group does not have; empty where nobody can tell."""
    known = [*options(group, folders)]
    word = str(name)
    same = CHOICES.get(group, {}).get(word.lower().replace("-", "_"))
    lowered = word.lower() if word.lower() in known else same
    if lowered:
        return f"; did you mean {group}={lowered}?"
    if group == "network" and (target := a_model(word)):
        return f"; did you mean network._target_={target}? With network.num_classes=N"
    if group == "data" and ("/" in word or Path(word).exists()):
        return f"; where it lies is data.root={word}, and data= how, as data=folder"
    if near := _near(word, known):
        return near.replace("mean ", f"mean {group}=")
    own = {"network": "a network", "optimizer": "an optimiser", "data": "a data set", "loss": "a loss"}
    return f"; {own[group]} of your own is {group}._target_=PACKAGE.CLASS" if group in own else ""


def a_model(name: str) -> str | None:
    """The dotted path of torchvision's model of a name; None where it has none."""
    try:
        import torchvision.models  # slow to import: only where something is refused

        found = name.lower().replace("-", "_")
        return f"torchvision.models.{found}" if found in torchvision.models.list_models() else None
    except (ImportError, RuntimeError):
        return None
