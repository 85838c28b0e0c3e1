"""Sweeps: `optimizer.lr=0.001,0.003 -m` is one study, of a part for each point of the grid."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Transformer
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict

from lbdist.config.compose import compose, compose_parts, has_parts
from lbdist.config.text import quoted, unparsed
from lbdist.errors import InputError

FLAGS = ("-m", "--multirun")
"""What asks for a sweep on the command line, as Hydra has it."""

SHARED = (
    "experiment", "scale", "data", "loss", "network", "name", "storage", "executor", "output", "dry_run",
    "retrain", "retries", "max_concurrent", "regroup_seconds", "num_workers", "seeds_at_once", "checkpoint",
    "checkpoint_key",
)  # fmt: skip
"""Keys that the parts of a study share; of a network, its own keys may be swept."""


def compose_all(
    words: Sequence[str], folders: Sequence[Path] = ()
) -> tuple[DictConfig, dict[str, DictConfig]]:
    """`compose_parts`, or `compose_sweep` where `-m` is among the words.

    Raises:
        InputError: As these.
    """
    rest = [word for word in words if word not in FLAGS]
    return compose_parts(rest, folders) if len(rest) == len(words) else compose_sweep(rest, folders)


def compose_sweep(
    overrides: Sequence[str], folders: Sequence[Path] = ()
) -> tuple[DictConfig, dict[str, DictConfig]]:
    """The configuration of a study of every point of a grid, and that of each point, by what it is called.

    Args:
        overrides: Those of the command line; of a key with several values, `a,b`, the grid has each.
        folders: Folders of the user's own.

    Raises:
        InputError: A key that is not swept over, nothing to sweep over, or points that are one.
    """
    swept: dict[str, list[str]] = {}
    for text in overrides:
        if values := _values(text):
            _check_key(text)
            swept[text] = values
    if not swept:
        raise InputError("-m: must be given with a key of several values, as in optimizer.lr=0.001,0.003")
    if has_parts(overrides, folders):
        raise InputError("-m: must be left out of a study that consists of others; sweep over one of them")
    rest = [text for text in overrides if text not in swept]
    keys = [text.partition("=")[0] for text in swept]
    parts: dict[str, DictConfig] = {}
    points: dict[str, str] = {}
    for point in itertools.product(*swept.values()):
        chosen = [f"{key}={value}" for key, value in zip(keys, point, strict=True)]
        config = compose([*rest, *chosen], folders)
        name = ", ".join(text.lstrip("+") for text in chosen)
        if name in parts:
            raise InputError(f"-m: must have each point once, not {name} twice")
        parts[name] = config
        read = {key.lstrip("+"): _read(config, key, value) for key, value in zip(keys, point, strict=True)}
        points[name] = json.dumps(read)
    whole = next(iter(parts.values())).copy()
    if not any(text.startswith("name=") for text in overrides):
        whole.name = f"{whole.name}-by-{'-'.join(key.lstrip('+') for key in keys)}"[:100]
    with open_dict(whole):
        whole.study = {"_target_": "lbdist.studies.sweep.Sweep", "points_of": points}
    return whole, parts


def _values(text: str) -> list[str]:
    """The values of an override that has several, as overrides have them; none where it has one."""
    override = _parsed(text)
    if override.is_delete() or not override.is_sweep_override():
        return []
    return [str(value) for value in override.sweep_iterator(transformer=Transformer.encode)]


def _parsed(text: str) -> Override:
    try:
        return OverridesParser.create().parse_override(quoted(text))
    except HydraException as error:
        raise InputError(unparsed(text)) from error


def _check_key(text: str) -> None:
    key = text.partition("=")[0].lstrip("+")
    first, dot, _ = key.partition(".")
    if first in SHARED and not (first == "network" and dot):
        raise InputError(
            f"{text}: must be one value, since the points of a sweep share it; run the study once for each, "
            "with a name= of its own"
        )


def _read(config: DictConfig, key: str, value: str) -> Any:
    """The value of a point as its configuration has it; a list or a group as it was written."""
    found = OmegaConf.select(config, key.lstrip("+"))
    return found if isinstance(found, bool | int | float | str) else value
