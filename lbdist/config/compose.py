"""Hydra composes `experiments/`, folders of the user's own and the command line into one configuration.

It is typed by `Config`; every complaint is an `InputError` of one line.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lbdist.config import meant
from lbdist.config.build import allowed_type, plain
from lbdist.config.choices import ALL as ALL
from lbdist.config.choices import SEVERAL as SEVERAL
from lbdist.config.choices import config_root as config_root
from lbdist.config.choices import file
from lbdist.config.choices import options as options
from lbdist.config.schema import Config, Search
from lbdist.config.text import as_typed, quoted, unparsed
from lbdist.errors import InputError, one_line, require


def compose(overrides: Sequence[str] = (), folders: Sequence[Path] = ()) -> DictConfig:
    """The configuration that the command line's overrides ask for, typed by `Config`.

    Args:
        overrides: Hydra overrides such as `experiment=remedies`, `remedy.robust.rho=0.3`.
        folders: Folders of the user's own beside `experiments/`, with the same groups in them.

    Raises:
        InputError: An unknown study, key or type.
    """
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"--config-dir {folder}: must be a folder that is there")
    given, overrides = overrides, [quoted(text) for text in overrides]
    for text in overrides:
        _check_override(text, folders)
    own = _own_network(overrides)
    if added := [*own, *_arguments(overrides)]:  # nobody else's, and none of them has to be there before
        overrides = [f"++{text.lstrip('+')}" if text.lstrip("+") in added else text for text in overrides]
    ConfigStore.instance().store(name="schema", node=Config)
    every = ["none", *(name for name in options("remedy", folders) if name != "none")]
    ConfigStore.instance().store(group="remedy", name=ALL, node={"defaults": every})
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(config_root()), version_base="1.3", job_name="lbdist"):
            paths = ",".join(f"file://{folder.resolve()}" for folder in folders)
            search = [f"hydra.searchpath=[{paths}]"] if folders else []
            config = hydra.compose("config", overrides=[*search, *overrides])
        if own:
            keys = {text.partition("=")[0].split(".")[1] for text in own}
            kept = {str(key): value for key, value in config.network.items() if key in keys}
            named = {"name": str(kept["_target_"]).rpartition(".")[2], **kept}
            OmegaConf.update(config, "network", named, merge=False)
        as_typed(config, given)
        OmegaConf.resolve(
            config.copy()
        )  # `derived` is filled once the data is read; the rest must resolve now
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(_complaint(error, overrides, folders)) from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"experiments: a YAML cannot be read: {one_line(error)}") from error
    for section, schema in {"": Config, **_SECTIONS}.items():
        node = (config.get(section) or {}) if section else config
        for name in sorted(set(node) ^ set(_fields(schema))):  # Hydra's + and ~ go past the schema
            key = f"{section}.{name}".lstrip(".")
            raise InputError(f"{key}: " + ("there is no such key" if name in node else "must be given"))
    return config


def compose_parts(
    overrides: Sequence[str] = (), folders: Sequence[Path] = ()
) -> tuple[DictConfig, dict[str, DictConfig]]:
    """`compose`, and the configuration of each study that the chosen one consists of (`study.parts`).

    An override goes to every part that has its key, and is refused where neither one of them nor the study
    itself has it. Remedies go to the parts that have some.

    Raises:
        InputError: An unknown study, key or type.
    """
    chosen = _choice(overrides, folders)
    if not chosen:
        return compose(overrides, folders), {}  # most studies: composing takes its time
    whole = compose(chosen, folders)
    parts = whole.study.parts
    names = OmegaConf.is_list(parts) and len(parts) > 0 and all(isinstance(name, str) for name in parts)
    require(bool(names), "study.parts", parts, "a list of experiments")
    for name in parts:
        nested = (file("experiment", name, folders).get("study") or {}).get("parts")
        require(not nested, "study.parts", list(parts), f"studies, not {name}, which consists of others")
    parts = list(dict.fromkeys(parts))
    rest = [text for text in overrides if text not in chosen]
    for text in rest:
        if text.startswith("~study"):
            raise InputError(f"{text}: must be left out: {whole.name} is made of its study.parts")
        if text.lstrip("+~").startswith("measure="):
            raise InputError(f"{text}: must be left out, since each part has its own; run the part alone")
    bare = {"": whole, **{name: compose([f"experiment={name}"], folders) for name in parts}}
    takers = {text: [name for name, config in bare.items() if _has(config, text)] for text in rest}
    made = {}
    for name in bare:
        mine = [text for text in rest if name in takers[text] or not takers[text]]
        first = [f"experiment={name}"] if name else chosen
        made[name] = compose([*first, *mine], folders) if mine else bare[name]
    return made.pop(""), made


def has_parts(overrides: Sequence[str], folders: Sequence[Path] = ()) -> bool:
    """Whether the chosen study consists of others."""
    return bool(_choice(overrides, folders))


def _choice(overrides: Sequence[str], folders: Sequence[Path]) -> list[str]:
    """The overrides that choose a study which consists of parts; none where it is another one."""
    chosen = [text for text in overrides if text.startswith(("experiment=", "study.parts="))]
    name = next((text.partition("=")[2] for text in chosen if text.startswith("experiment=")), "")
    return chosen if (file("experiment", name, folders).get("study") or {}).get("parts") else []


def _has(config: DictConfig, override: str) -> bool:
    """Whether a configuration has an override's key, or is to be given it."""
    key = override.lstrip("+~").partition("=")[0]
    if key == "remedy":
        return len(config.remedy) > 1
    if override.startswith("+") or "." not in key:
        return True
    node: Any = OmegaConf.to_container(config, resolve=False)
    for name in key.split("."):
        if not (isinstance(node, dict) and name in node):
            return False
        node = node[name]
    return True


def _fields(schema: Any) -> list[str]:
    return [f.name for f in dataclasses.fields(schema)]


def _own_network(overrides: Sequence[str]) -> list[str]:
    """The overrides that say what the network is, where they name a class instead of choosing a network."""
    plain = [text.lstrip("+") for text in overrides]
    if any(text.startswith("network=") for text in plain):
        return []
    found = [text for text in plain if text.startswith("network.")]
    return found if any(text.startswith("network._target_=") for text in found) else []


def _arguments(overrides: Sequence[str]) -> list[str]:
    """The overrides within nodes of the data set that name a class of their own, as `data.train` does."""
    plain = [text.lstrip("+") for text in overrides]
    named = [match[1] for text in plain if (match := re.match(r"(data\.\w+\.)_target_=", text))]
    return [text for text in plain if text.startswith(tuple(named))] if named else []


def _check_override(text: str, folders: Sequence[Path]) -> None:
    """Refuses an override that is malformed or that names a choice its group does not have."""
    try:
        override = OverridesParser.create().parse_override(text)
        key, value, sweep = override.key_or_group, override.value(), override.is_sweep_override()
    except HydraException as error:
        raise InputError(unparsed(text)) from error
    if sweep:
        words = f"{text}: must be one value; a list is written {key}=[A,B], and -m runs a study at each"
        raise InputError(words)
    if not key:
        raise InputError(f"{text}: must be KEY=VALUE, but there is no key")
    if re.match(r"hydra\b", key):
        raise InputError(f"{text}: must be left out: it has no effect here; storage= says where results go")
    if not override.is_delete() and any((root / key).is_dir() for root in (config_root(), *folders)):
        chosen = value if isinstance(value, list) and key in SEVERAL else [value]
        known = [*options(key, folders), *([ALL] if key == "remedy" else [])]
        nothing = [] if key == "measure" else [None]  # a study may measure nothing
        for name in chosen or nothing:
            if not isinstance(name, str) or name not in known:
                number = "one or more" if key in SEVERAL else "one"
                way = meant.of_choice(key, name, folders)
                raise InputError(f"{text}: must be {number} of {', '.join(known)}{way}")


_SECTIONS = {"search": Search}


def _complaint(error: BaseException, overrides: Sequence[str], folders: Sequence[Path]) -> str:
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
        member = rest.partition(".")[0]
        if group in SEVERAL and f"Key '{member}'" in line and member in options(group, folders):
            hint = f", since {member} is not among those of the study; add it to {group}=[...]"
        else:
            hint = meant.of_key(key, overrides, folders)
        return f"{given}: there is no key {key}{hint} (`--help` lists the keys)"
    merging = next((o for o in overrides if f"Error merging override {o}: " in line), None)
    if merging:
        allowed = allowed_type(line)
        line = line.split(f"Error merging override {merging}: ", 1)[1]
        return f"{merging}: must be {allowed}" if allowed else f"{merging}: {line}"
    keys = ((o, o.lstrip("+~").split("=")[0]) for o in overrides)
    about = (o for o, key in keys if "${" in o or f"'{key}'" in line or f"${{{key}}}" in line)
    given = next(about, getattr(error, "full_key", None))
    return line if not given or given in line else f"{given}: {line}"


def left_out(config: DictConfig, overrides: Sequence[str], folders: Sequence[Path] = ()) -> str:
    """What the published protocol has and this study has not; empty where that is nothing.

    Args:
        config: The study's configuration.
        overrides: What it was composed of.
        folders: Folders of the user's own.
    """
    rest = [text for text in overrides if not text.startswith("scale=")]
    if chosen := _choice(overrides, folders):  # of which some keys are its parts' alone
        whole = compose(chosen, folders)
        rest = [text for text in rest if text in chosen or _has(whole, text)]
    published = compose([*rest, "scale=paper"], folders)
    ours, theirs = plain(config), plain(published)
    several = "parts" in config.study
    keys: list[tuple[str, ...]] = [(name,) for name in ("epochs", "seeds", "small_batch", "patience")]
    keys += [("scale", name) for name in sorted(theirs["scale"]) if name == "samples" or several]
    keys += [("study", name) for name in sorted(theirs["study"])]
    shown = []
    for key in keys:
        a, b = (functools.reduce(lambda node, name: node.get(name), key, one) for one in (ours, theirs))
        if a != b and key != ("scale", "name"):
            shown.append(f"{'.'.join(key)} {json.dumps(a)} instead of {json.dumps(b)}")
    return f"short of the published protocol (scale=paper): {'; '.join(shown)}" if shown else ""
