"""Text on the command line is what was typed, whatever Hydra's grammar makes of it."""

from __future__ import annotations

import dataclasses
import inspect
import pkgutil
import re
from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from lbdist.config.schema import Config
from lbdist.processes import for_shell


def quoted(text: str) -> str:
    """An override for Hydra's grammar, whose value is a path or URI or in another alphabet: text in any case.

    Example:
        >>> quoted("storage=~/a=b"), quoted("data.root=données"), quoted("seeds=3")
        ("storage='~/a=b'", "data.root='données'", 'seeds=3')
    """
    key, mark, value = text.partition("=")
    path = re.match(r"(~|\.{0,2}/|[a-z][a-z0-9+.-]*://)", value)
    foreign = not value.isascii() and not re.search(r"[\[\]{}\",]", value)
    if (path or foreign) and "${" not in value and not value.startswith("'"):
        return f"{key}{mark}{_text(value)}"
    return text


def _text(value: str) -> str:
    escaped = re.sub(r"(\\*)'", lambda found: found[1] * 2 + "\\'", value)
    return f"'{escaped}'"


def unparsed(text: str) -> str:
    """What is said of an override that Hydra cannot parse: how a shell is given its value as text."""
    key, _, value = text.partition("=")
    way = f"; text is put in quotes: {for_shell(f'{key}={_text(value)}')}" if value else ""
    return f"{text}: must be KEY=VALUE in Hydra's syntax{way}"


def as_typed(config: DictConfig, overrides: Sequence[str]) -> None:
    """Puts back what was typed where Hydra has made a number or a truth value of a key that takes text.

    `storage=2024_01_01` would be 20240101, and `storage=1e3` 1000.0.

    Args:
        config: Composed; changed in place.
        overrides: The command line's.
    """
    for text in overrides:
        override = OverridesParser.create().parse_override(quoted(text))
        if override.is_delete() or override.key_or_group is None:
            continue
        value, raw = override.value(), text.partition("=")[2].strip()
        typed = _typed(value, raw)
        if typed != value or type(typed) is not type(value):
            key = override.key_or_group
            if _takes_text(config, key):
                OmegaConf.update(config, key, typed, merge=False)


def _typed(value: Any, raw: str) -> Any:
    """A parsed value, with its numbers and truth values as they were typed."""
    if isinstance(value, bool | int | float):
        return raw
    if any(mark in raw for mark in "'\"\\") or not isinstance(value, list | dict) or "[" in raw[1:]:
        return value
    parts = [part.strip() for part in raw[1:-1].split(",")] if raw[1:-1].strip() else []
    if len(parts) != len(value):
        return value
    if isinstance(value, list):
        return [_typed(one, part) for one, part in zip(value, parts, strict=True)]
    pairs = [part.partition(":") for part in parts]
    return {key: _typed(one, pair[2].strip()) for (key, one), pair in zip(value.items(), pairs, strict=True)}


def _takes_text(config: DictConfig, key: str) -> bool:
    """Whether a key's type is text, or a list or mapping of it, and nothing else."""
    above, _, name = key.rpartition(".")
    if not above:
        kinds = {field.name: str(field.type) for field in dataclasses.fields(Config)}
        return _is_text(kinds.get(name, ""))
    node = OmegaConf.select(config, above)
    path = node.get("_target_") if isinstance(node, DictConfig) else None
    try:
        target = pkgutil.resolve_name(str(path))
        if dataclasses.is_dataclass(target):
            field = {one.name: one for one in dataclasses.fields(target)}[name]
            return bool(field.metadata.get("text")) or _is_text(str(field.type))
        return _is_text(str(inspect.signature(target).parameters[name].annotation))
    except (ImportError, AttributeError, TypeError, ValueError, KeyError):
        return False  # refused further on, or unknown


def _is_text(kind: str) -> bool:
    return "str" in kind and not re.search(r"\b(int|float|bool|Any|complex)\b", kind)
