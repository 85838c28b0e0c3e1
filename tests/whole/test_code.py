"""The code itself: style, types, the direction of imports, and what lies where."""

import ast
import doctest
import importlib
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
TOP_LEVEL = {"README.md", "LICENSE", "pyproject.toml", "ray_cluster.yaml"}
TOP_LEVEL |= {"cluster", "experiments", "lbdist", "tests"}


def run(tool: str, *arguments: str) -> None:
    """A tool of this environment, in the repository."""
    path = Path(sysconfig.get_path("scripts")) / tool
    assert path.exists(), f"{tool} is missing: pip install -e '.[test]'"
    done = subprocess.run(
        [str(path), *arguments], cwd=REPOSITORY, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout + done.stderr


def files() -> list[Path]:
    """The files of the project: what git knows, or would take."""
    if not (REPOSITORY / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    return [Path(name) for name in listed.split("\0") if name and (REPOSITORY / name).is_file()]


def test_lint() -> None:
    run("ruff", "check", "lbdist", "tests")


def test_format() -> None:
    run("ruff", "format", "--check", "lbdist", "tests")


def test_types() -> None:
    run("mypy")


def test_imports_run_one_way() -> None:
    run("lint-imports")


FILE_LINES, FUNCTION_LINES = 420, 60


def test_no_file_is_several_rooms_and_no_function_several_steps() -> None:
    long = []
    for path in sorted((REPOSITORY / "lbdist").rglob("*.py")):
        text, name = path.read_text(), path.relative_to(REPOSITORY)
        if (lines := len(text.splitlines())) > FILE_LINES:
            long.append(f"{name}: {lines} lines, of {FILE_LINES} at most")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > FUNCTION_LINES:
                    long.append(f"{name}: {node.name}: {lines} lines, of {FUNCTION_LINES} at most")
    assert not long


def test_sharpness_alone_needs_no_hydra() -> None:
    program = (
        "import sys; from lbdist.objective import Objective; from lbdist.sharpness import box_sharpness;"
        "print({'hydra', 'ray'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "set()", done.stderr


def test_nothing_else_at_the_top() -> None:
    found = {path.parts[0] for path in files()}
    assert {name for name in found if not name.startswith(".")} <= TOP_LEVEL


def test_no_path_of_one_machine() -> None:
    # the images of Ray have a user `ray`, and Ray itself works under /tmp/ray
    pattern = re.compile(r"/home/(?!ray\b)\w|/Users/\w|/roo[t]/|/tmp/(?!ray\b)\w")
    for path in files():
        text = (REPOSITORY / path).read_bytes().decode(errors="replace")
        hits = [match[0] for match in pattern.finditer(text)]
        assert not hits, f"{path}: {hits}"


MODULES = sorted(
    str(path.relative_to(REPOSITORY).with_suffix("")).replace("/", ".")
    for path in (REPOSITORY / "lbdist").rglob("*.py")
    if "    >>> " in path.read_text()
)


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_docstrings_give_what_they_say(name: str) -> None:
    found = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert found.attempted and not found.failed
