"""Tries whether the tests would notice: changes one line of lbdist at a time, and runs the tests of its room.

    python tests/mutate.py [--number 10] [--seed 0] [--jobs 2] [FILE or folder ...]

By default of every file in `ROOMS`, in a copy of the repository. A change that no test notices is printed
with its line: a test is missing, or the function is the same. It takes some ten seconds a change.
"""

from __future__ import annotations

import argparse
import ast
import copy
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

ROOT = Path(__file__).parents[1]
ROOMS = {
    "lbdist/rules.py": ["tests/test_rules.py"],
    "lbdist/storage.py": ["tests/test_storage.py", "tests/test_results.py"],
    **{f"lbdist/{name}.py": ["tests/test_results.py"] for name in ("results", "old_rows")},
    "lbdist/plan.py": ["tests/test_plan.py"],
    "lbdist/studies": ["tests/studies", "tests/training/test_procedures.py"],
    **{
        f"lbdist/{name}.py": ["tests/test_objective.py", "tests/test_objective_odd.py"]
        for name in ("objective", "held", "proof", "recalibration")
    },
    "lbdist/losses.py": ["tests/test_losses.py"],
    "lbdist/remedies": ["tests/remedies", "tests/config/test_defaults.py"],
    "lbdist/sharpness/evaluator.py": ["tests/whole/test_serial.py"],
    "lbdist/sharpness": ["tests/sharpness", "tests/config/test_defaults.py"],
    "lbdist/training": ["tests/training"],
    "lbdist/tuning": ["tests/tuning", "tests/whole/test_damage.py"],
    "lbdist/analysis": ["tests/analysis"],
}
"""The tests that should see a change, by the file or folder that it is in."""

EXAMPLES = "test_the_examples_in_docstrings_give_what_they_say"

SLOW = ("tests/sharpness/test_pool.py", "tests/training/test_workers.py")
"""Left out: Ray, and worker groups of every cell."""

ELSEWHERE = ("pool.py", "ray_train.py", "trial.py")
"""Files that run only through Ray, which would take too long."""

SWAPPED: dict[type, type] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Lt: ast.GtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.LtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.And: ast.Or,
    ast.Or: ast.And,
}
NAMES = {"min": "max", "max": "min", "any": "all", "all": "any"}


def changes(tree: ast.Module) -> Iterator[tuple[int, ast.Module]]:
    """Every single change of a module: the line, and the module with it."""
    places = [place for place, node in enumerate(ast.walk(tree)) if _changed(node) is not None]
    words = _words(tree)
    for place in places:
        other = copy.deepcopy(tree)
        node = next(found for number, found in enumerate(ast.walk(other)) if number == place)
        line = getattr(node, "lineno", 0)
        if line in words:
            continue
        change = _changed(node)
        assert change is not None
        change()
        yield line, ast.fix_missing_locations(other)


def _words(tree: ast.Module) -> set[int]:
    """Lines of docstrings, annotations, messages and imports, which say and do nothing."""
    found: set[int] = set()
    for node in ast.walk(tree):
        said = isinstance(node, ast.Import | ast.ImportFrom | ast.Raise | ast.Assert | ast.JoinedStr)
        called = isinstance(node, ast.Call) and ast.unparse(node.func) in ("require", "say", "self._say")
        text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        declared = isinstance(node, ast.AnnAssign) and node.value is None
        if said or called or text or declared:
            found |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return found


def _changed(node: ast.AST):  # type: ignore[no-untyped-def]
    """What would change a node, if it is of a kind that is changed."""
    if isinstance(node, ast.BinOp | ast.AugAssign) and type(node.op) in SWAPPED:
        return lambda: setattr(node, "op", SWAPPED[type(node.op)]())
    if isinstance(node, ast.BoolOp):
        return lambda: setattr(node, "op", SWAPPED[type(node.op)]())
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in SWAPPED:
        return lambda: node.ops.__setitem__(0, SWAPPED[type(node.ops[0])]())
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Not):
        return lambda: _become(node, node.operand)
    if isinstance(node, ast.Constant) and type(node.value) in (int, float) and hasattr(node, "lineno"):
        other = node.value + 1 if isinstance(node.value, int) else 2.0 * node.value + 1e-3
        return lambda: setattr(node, "value", other)
    if isinstance(node, ast.Name) and node.id in NAMES and isinstance(node.ctx, ast.Load):
        return lambda: setattr(node, "id", NAMES[node.id])
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):  # what is not done at all
        return lambda: setattr(node, "value", ast.Constant(value=None))
    return None


def _become(node: ast.UnaryOp, operand: ast.expr) -> None:
    """A sign or a `not` is dropped."""
    node.op, node.operand = ast.UAdd(), operand
    if not isinstance(operand, ast.Constant):  # `+ condition` is no condition
        node.op, node.operand = ast.Not(), ast.UnaryOp(op=ast.Not(), operand=operand)


def chosen(names: list[str], number: int, seed: int) -> list[tuple[Path, int, str, list[str]]]:
    """Changes to try: file, line, the module as it then is, and the tests that should see it."""
    found = []
    for name, tests in ROOMS.items():
        path = ROOT / name
        files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
        files = [file for file in files if path == file or str(file.relative_to(ROOT)) not in ROOMS]
        for file in files:
            own = file.relative_to(ROOT)
            if file.name in ELSEWHERE or not any(str(own).startswith(name) for name in names or [""]):
                continue
            every = list(changes(ast.parse(file.read_text())))
            some = random.Random(f"{seed} {own}").sample(every, min(number, len(every)))
            first = Path("tests", *own.parts[1:-1], f"test_{own.name}")  # the likeliest to notice
            ordered = [str(first), *tests] if (ROOT / first).exists() else list(tests)
            if ">>> " in file.read_text():
                module = ".".join(own.with_suffix("").parts)
                ordered.append(f"tests/whole/test_code.py::{EXAMPLES}[{module}]")
            found += [(own, line, ast.unparse(tree), ordered) for line, tree in some]
    return found


def main() -> int:
    """Tries changes, and says which of them no test noticed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*")
    parser.add_argument("--number", type=int, default=3, help="changes a file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    given = parser.parse_args()
    tried = chosen(given.files, given.number, given.seed)
    with tempfile.TemporaryDirectory() as folder:
        copies: SimpleQueue[Path] = SimpleQueue()
        for job in range(given.jobs):
            there = Path(folder) / f"copy-{job}"
            skipped = shutil.ignore_patterns(".*", "__pycache__", "results", "evidence.parquet")
            shutil.copytree(ROOT, there, ignore=skipped)
            copies.put(there)

        def notices(change: tuple[Path, int, str, list[str]]) -> bool:
            file, _, text, tests = change
            there = copies.get()
            try:
                before = (there / file).read_text()
                (there / file).write_text(text)
                command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "--timeout=120", *tests]
                command += ["-p", "no:cacheprovider", *(f"--ignore={file}" for file in SLOW)]
                environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
                quiet = subprocess.DEVNULL
                done = subprocess.run(command, cwd=there, env=environment, stdout=quiet, stderr=quiet)
                (there / file).write_text(before)
                return done.returncode != 0
            finally:
                copies.put(there)

        lived = []
        with ThreadPoolExecutor(given.jobs) as pool:
            ends = zip(tried, pool.map(notices, tried), strict=True)
            for number, ((file, line, text, _), noticed) in enumerate(ends, 1):
                print(f"{number} of {len(tried)}", end="\r", file=sys.stderr, flush=True)
                if not noticed:
                    before = ast.unparse(ast.parse((ROOT / file).read_text())).splitlines()
                    now = [new for new, old in zip(text.splitlines(), before, strict=False) if new != old]
                    lived.append(f"{file}:{line}: {now[0].strip() if now else '(a statement)'}")
                    print(f"not noticed: {lived[-1]}", flush=True)
    print(f"{len(tried) - len(lived)} of {len(tried)} changes were noticed")
    return 1 if lived else 0


if __name__ == "__main__":
    sys.exit(main())
