"""The choices of each config group: the YAMLs of `experiments/` and of the user's own folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from lbdist.errors import InputError

SEVERAL = ("remedy", "measure")
"""Groups of which a study may choose several."""

ALL = "all"
"""The choice of every remedy that there is, by which a new one joins the studies that compare them."""


def config_root() -> Path:
    """The folder `experiments/`: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    for root in (package / "experiments", package.parent / "experiments"):
        if (root / "config.yaml").is_file():
            return root
    raise InputError(f"experiments: no configuration found beside or inside {package}; reinstall lbdist")


def options(group: str, folders: Sequence[Path] = ()) -> dict[str, str]:
    """The choices of a config group and the word each YAML's first line says of it."""
    found = {}
    for root in (config_root(), *folders):
        for path in (root / group).glob("*.yaml"):
            lines = path.read_text().splitlines()
            words = [s.lstrip("# ") for s in lines[:2] if s.startswith("#") and "@package" not in s]
            found[path.stem] = words[0] if words else ""
    return dict(sorted(found.items()))


def file(group: str, member: str, folders: Sequence[Path]) -> dict[str, Any]:
    """What the YAML of a choice says, uncomposed; nothing where there is none."""
    for root in (config_root(), *folders):
        path = root / group / f"{member}.yaml"
        if path.is_file():
            found = yaml.safe_load(path.read_text())
            return found if isinstance(found, dict) else {}
    return {}
