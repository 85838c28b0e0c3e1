"""The configuration of a study: the dataclass schema of every key, its rules, and its composition.

Hydra composes `experiments/` and the command line into one `Config`; `check` then applies the rules
that a type cannot state. Every complaint is a `ConfigError` of one line.
"""

from __future__ import annotations

import dataclasses
import difflib
import pkgutil
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException


class ConfigError(ValueError):
    """A wrong input: one line that names the field, the value and what is allowed."""


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
    evaluations: int = 20
    derived: Derived = field(default_factory=Derived)
    search: Search = field(default_factory=Search)
    sharpness: Sharpness = field(default_factory=Sharpness)
    storage: str = "results"
    max_concurrent: int | None = None
    retries: int = 2
    dry_run: bool = False


def config_root() -> Path:
    """The folder `experiments/`: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent
    for root in (package / "experiments", package.parent / "experiments"):
        if (root / "config.yaml").is_file():
            return root
    raise ConfigError(f"experiments: no configuration found beside or inside {package}; reinstall lbdist")


def compose(overrides: Sequence[str] = ()) -> DictConfig:
    """The configuration that the command line's overrides ask for, typed by `Config`.

    Args:
        overrides: Hydra overrides such as `experiment=remedies`, `remedy.robust.rho=0.3`.

    Raises:
        ConfigError: An unknown study, key or type.
    """
    for text in overrides:
        _check_override(text)
    ConfigStore.instance().store(name="schema", node=Config)
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(config_root()), version_base="1.3", job_name="lbdist"):
            config = hydra.compose("config", overrides=list(overrides))
        OmegaConf.resolve(
            config.copy()
        )  # `derived` is filled once the data is read; the rest must resolve now
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_one_line(error, overrides)) from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"experiments: a YAML cannot be read: {_words(error)}") from error
    for section, schema in {"": Config, **_SECTIONS}.items():
        node = (config.get(section) or {}) if section else config
        for name in sorted(set(node) ^ set(_fields(schema))):  # Hydra's + and ~ go past the schema
            key = f"{section}.{name}".lstrip(".")
            raise ConfigError(f"{key}: " + ("there is no such key" if name in node else "must be given"))
    return config


def _fields(schema: Any) -> list[str]:
    return [f.name for f in dataclasses.fields(schema)]


def _check_override(text: str) -> None:
    """Refuses an override that is malformed or that names a choice its group does not have."""
    try:
        override = OverridesParser.create().parse_override(text)
        key, value, sweep = override.key_or_group, override.value(), override.is_sweep_override()
    except HydraException as error:
        raise ConfigError(f"{text}: must be KEY=VALUE in Hydra's syntax") from error
    if sweep:
        raise ConfigError(f"{text}: must be one value; a list is written {key}=[A,B]")
    if not key:
        raise ConfigError(f"{text}: must be KEY=VALUE, but there is no key")
    if not override.is_delete() and (config_root() / key).is_dir():
        several = isinstance(value, list) and key == "remedy"
        chosen = value if isinstance(value, list) and several else [value]
        known = options(key)
        for name in chosen or [None]:
            if not isinstance(name, str) or name not in known:
                number = "one or more" if key == "remedy" else "one"
                raise ConfigError(f"{text}: must be {number} of {', '.join(known)}")


_SECTIONS = {"search": Search, "sharpness": Sharpness}

# what OmegaConf says of a wrong type, and what is allowed
_TYPES = {
    "converted to Integer": "a whole number",
    "converted to Float": "a number",
    "valid bool": "true or false",
    "ListConfig": "a list, as in [A,B]",
    "not Optional": "given, not null",
    "not a subclass of": "a group of keys, set one by one as in search.seeds=2",
}


def _allowed(complaint: str) -> str | None:
    """What a key's type allows, from OmegaConf's complaint."""
    return next((allowed for words, allowed in _TYPES.items() if words in complaint), None)


def _one_line(error: BaseException, overrides: Sequence[str]) -> str:
    """Hydra's complaint as one line, with the override it is about and the nearest key that exists."""
    text = str(error)
    cause = error.__cause__
    if isinstance(cause, OmegaConfBaseException) and str(cause) not in text:
        text += f": {cause}"
    kept = [
        line.strip()
        for line in text.splitlines()
        if line.strip()
        and not re.match(
            r"\s*(full_key|object_type|reference_type|Config search path|"
            r"provider=|Set the environment)",
            line,
        )
    ]
    line = re.sub(r"\s+", " ", "; ".join(kept))
    wrong = re.search(r"Could not override '([\w.]+)'", line)
    if wrong and ("Key '" in line or "not in" in line):
        key = wrong[1]
        given = next((o for o in overrides if o.lstrip("+~").split("=")[0].split("@")[0] == key), key)
        group, _, rest = key.partition(".")
        names = _fields(_SECTIONS[group]) if group in _SECTIONS else []
        known = [f"{group}.{name}" for name in names] or [*_fields(Config), "experiment"]
        near = difflib.get_close_matches(key, known, n=1)
        hint = f"; did you mean {near[0]}?" if near and (names or not rest) else ""
        remedy = rest.split(".")[0]
        if group == "remedy" and f"Key '{remedy}'" in line and remedy in options("remedy"):
            hint = f", since {remedy} is not among the study's remedies; add it to remedy=[...]"
        return f"{given}: there is no key {key}{hint} (`--help` lists the keys)"
    merging = next((o for o in overrides if f"Error merging override {o}: " in line), None)
    if merging:
        allowed = _allowed(line)
        line = line.split(f"Error merging override {merging}: ", 1)[1]
        return f"{merging}: must be {allowed}" if allowed else f"{merging}: {line}"
    about = (o for o in overrides if "${" in o or f"'{o.lstrip('+~').split('=')[0]}'" in line)
    given = next(about, getattr(error, "full_key", None))
    return line if not given or given in line else f"{given}: {line}"


def options(group: str) -> dict[str, str]:
    """The choices of a config group and the word each YAML's first line says of it."""
    found = {}
    for path in sorted((config_root() / group).glob("*.yaml")):
        lines = path.read_text().splitlines()
        words = [line.lstrip("# ") for line in lines[:2] if line.startswith("#") and "@package" not in line]
        found[path.stem] = words[0] if words else ""
    return found


def require(condition: bool, key: str, value: Any, allowed: str) -> None:
    """Raises the one-line `ConfigError` of a key unless its condition holds."""
    if not condition:
        raise ConfigError(f"{key}={value}: must be {allowed}")


def check(config: DictConfig) -> None:
    """The rules of the keys that need neither data nor network.

    Raises:
        ConfigError: The first rule that is broken.
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
    require(len(config.remedy) > 0, "remedy", "[]", "one or more of " + ", ".join(options("remedy")))
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


def plain(node: Any) -> Any:
    """A configuration node as plain dicts, lists and values."""
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def build(node: Mapping[str, Any], key: str, *arguments: Any, kind: type = object) -> Any:
    """Instantiates the `_target_` of a node; `name` and `search` are the project's own keys.

    A dataclass's fields are converted and checked by their types first.

    Args:
        node: A mapping with `_target_` and its arguments.
        key: Where the node stands in the configuration, for the complaint.
        arguments: Positional arguments.
        kind: What the result must be an instance of.

    Raises:
        ConfigError: The target cannot be imported, refuses its arguments or gives something else.
    """
    require(isinstance(node, Mapping), key, node, "a group of keys with _target_, the dotted path of a class")
    values = {name: value for name, value in plain(node).items() if name not in ("name", "search")}
    require("_target_" in values, f"{key}._target_", None, "the dotted path of a class")
    path = values.pop("_target_")
    try:
        target = pkgutil.resolve_name(path)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{key}._target_={path}: must be the dotted path of a class ({_words(error)})"
        ) from error
    try:
        if dataclasses.is_dataclass(target):
            allowed = {f.name for f in dataclasses.fields(target)}
            for name in sorted(set(values) - allowed):
                raise ConfigError(
                    f"{key}.{name}={values[name]}: no such key; allowed: {', '.join(sorted(allowed))}"
                )
            values = dict(OmegaConf.merge(OmegaConf.structured(target), values))
            values = {name: plain(value) for name, value in values.items() if name in allowed}
        made = target(*arguments, **values)
    except ConfigError as error:
        text = str(error)
        raise ConfigError(text if text.startswith(key.split(".")[0]) else f"{key}.{text}") from error
    except OmegaConfBaseException as error:
        name, line = error.full_key or "", str(error).splitlines()[0]
        wanted = _allowed(line)
        complaint = f"={values.get(name)}: must be {wanted}" if wanted and name in values else f": {line}"
        raise ConfigError(f"{key}.{name}{complaint}") from error
    except Exception as error:
        given = ", ".join(f"{name}={value}" for name, value in values.items())
        raise ConfigError(f"{key}: {path}({given}): {type(error).__name__}: {_words(error)}") from error
    require(isinstance(made, kind), f"{key}._target_", path, f"a {kind.__module__}.{kind.__qualname__}")
    return made


def _words(error: BaseException) -> str:
    return " ".join(str(error).split())
