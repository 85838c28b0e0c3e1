"""From a configuration node to the object that its `_target_` names."""

from __future__ import annotations

import dataclasses
import pkgutil
import re
from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lbdist.config.meant import a_model
from lbdist.errors import InputError, one_line, require

OWN = ("name", "search", "cell")
"""Keys of a node that are no arguments of its `_target_`."""

# what OmegaConf says of a wrong type, and what is allowed
_TYPES = {
    "converted to Integer": "a whole number",
    "converted to Float": "a number",
    "valid bool": "true or false",
    "ListConfig": "a list, as in [A,B]",
    "not Optional": "given, not null",
    "not a subclass of": "a group of keys, set one by one as in search.seeds=2",
}


def allowed_type(complaint: str) -> str | None:
    """What a key's type allows, from OmegaConf's complaint."""
    return next((allowed for words, allowed in _TYPES.items() if words in complaint), None)


def plain(node: Any) -> Any:
    """A configuration node as plain dicts, lists and values."""
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def build(node: Mapping[str, Any], key: str, *arguments: Any, kind: type = object) -> Any:
    """Instantiates the `_target_` of a node; the keys in `OWN` are the project's.

    A dataclass's fields are converted and checked by their types first.

    Args:
        node: A mapping with `_target_` and its arguments.
        key: Where the node stands in the configuration, for the complaint.
        arguments: Positional arguments.
        kind: What the result must be an instance of.

    Raises:
        InputError: The target cannot be imported, refuses its arguments or gives something else.
    """
    require(isinstance(node, Mapping), key, node, "a group of keys with _target_, the dotted path of a class")
    values = {name: value for name, value in plain(node).items() if name not in OWN}
    require("_target_" in values, f"{key}._target_", None, "the dotted path of a class")
    path = values.pop("_target_")
    try:
        target = pkgutil.resolve_name(path)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        model = a_model(path) if key == "network" and isinstance(path, str) else None
        way = f"; did you mean {model}?" if model else ""
        raise InputError(
            f"{key}._target_={path}: must be the dotted path of a class ({one_line(error)}){way}"
        ) from error
    if isinstance(target, type) and not issubclass(target, kind):
        raise InputError(f"{key}._target_={path}: must be a {_path(kind)}{getattr(kind, 'instead', '')}")
    try:
        if dataclasses.is_dataclass(target):
            allowed = {f.name for f in dataclasses.fields(target)}
            for name in sorted(set(values) - allowed):
                raise InputError(
                    f"{key}.{name}={values[name]}: no such key; allowed: {', '.join(sorted(allowed))}"
                )
            values = dict(OmegaConf.merge(OmegaConf.structured(target), values))
            values = {name: plain(value) for name, value in values.items() if name in allowed}
            for field in dataclasses.fields(target):
                value, flat = values.get(field.name), re.match(r"list\[(?!list)", str(field.type))
                nested = isinstance(value, list) and any(isinstance(inner, list | dict) for inner in value)
                require(not (flat and nested), f"{key}.{field.name}", value, "a list of single values")
        made = target(*arguments, **values)
    except InputError as error:
        text = str(error)
        whole = re.match(rf"{key.split('.')[0]}\b", text)  # it names the whole key already
        raise InputError(text if whole else f"{key}.{text}") from error
    except OmegaConfBaseException as error:
        name, line = (error.full_key or "").partition("[")[0], str(error).splitlines()[0]
        wanted = allowed_type(line)
        complaint = f"={values.get(name)}: must be {wanted}" if wanted and name in values else f": {line}"
        raise InputError(f"{key}.{name}{complaint}") from error
    except Exception as error:
        given = ", ".join(f"{name}={value}" for name, value in values.items())
        raise InputError(f"{key}: {path}({given}): {type(error).__name__}: {one_line(error)}") from error
    require(isinstance(made, kind), f"{key}._target_", path, f"a {_path(kind)}")
    return made


def _path(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
