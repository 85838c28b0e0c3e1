"""Where the project lies, and what its pyproject.toml says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10, where pytest brings it
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]


README = (ROOT / "README.md").read_text()
KEYS = (ROOT / "experiments" / "README.md").read_text()
EVIDENCE = (ROOT / "experiments" / "evidence" / "README.md").read_text()
BLOCKS = [block for text in (README, KEYS) for block in re.findall(r"```(\w+)\n(.*?)```", text, re.DOTALL)]
"""What they have a user type: the language, and the text."""


def own_files() -> dict[str, str]:
    """The modules of the user's that README shows, by their names."""
    found = {}
    for kind, text in BLOCKS:
        first, _, rest = text.partition("\n")
        if kind == "python" and re.fullmatch(r"# my_\w+\.py", first):
            found[first.removeprefix("# ")] = rest
    return found


def project() -> dict[str, Any]:
    """The table `project`."""
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return found
