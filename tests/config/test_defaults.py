"""What the shipped YAML says of a remedy or a measure is what its class says, and refuses the same values."""

from __future__ import annotations

import dataclasses
import pkgutil
from typing import Any

import pytest
import yaml

from lbdist.config.compose import config_root
from lbdist.errors import InputError

OTHERS = {("growth", "start"), ("curve", "curvilinear"), ("rescaling", "measures")}
"""What a YAML sets to something else: SB's batch, a curve instead of a line, measures instead of none."""

FREE = {("curve", "low"), ("slice", "low"), ("plane", "seed"), ("sharpness", "draw")}
"""Numbers that may be below 0."""


def nodes() -> dict[str, dict[str, Any]]:
    files = [path for group in ("remedy", "measure") for path in (config_root() / group).glob("*.yaml")]
    return {path.stem: yaml.safe_load(path.read_text())[path.stem] for path in sorted(files)}


def fields(name: str) -> dict[str, Any]:
    """The defaults of a class."""
    found = {}
    for field in dataclasses.fields(pkgutil.resolve_name(nodes()[name]["_target_"])):
        made = field.default_factory is not dataclasses.MISSING
        found[field.name] = field.default_factory() if made else field.default  # type: ignore[misc]
    return found


@pytest.mark.parametrize("name", nodes())
def test_a_default_is_what_is_shipped(name: str) -> None:
    node, known = nodes()[name], fields(name)
    differ = {key for key, value in known.items() if key in node and node[key] != value}
    assert differ == {key for other, key in OTHERS if other == name}


@pytest.mark.parametrize("name", nodes())
def test_a_number_below_zero_is_refused(name: str) -> None:
    made = pkgutil.resolve_name(nodes()[name]["_target_"])
    for key, value in fields(name).items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if number and (name, key) not in FREE:
            with pytest.raises(InputError, match=r"=.*-1.*: must be"):
                made(**{key: -1})
