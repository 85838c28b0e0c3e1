"""The code that numbers come from, by digests of its files: lbdist's, and what a user brings.

Two trees of one commit that differ, as edited ones do, are told apart. Libraries are known by their versions.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import pkgutil
import sys
import sysconfig
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

LBDIST = "lbdist"

_LIBRARIES = ("torch", "builtins")


def _digest(files: Mapping[str, Path]) -> str:
    found = hashlib.sha256()
    for name, path in sorted(files.items()):
        found.update(name.encode() + path.read_bytes())
    return found.hexdigest()[:8]


@functools.cache
def of_lbdist() -> str:
    """The digest of lbdist's own files, as this machine has them."""
    package = Path(__file__).resolve().parent
    return _digest({f"{path.relative_to(package)}": path for path in package.rglob("*.py")})


def installed(path: Path) -> bool:
    """Whether a file came with Python or with a package that was installed."""
    folders = [Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "purelib", "platlib")]
    return any(path.is_relative_to(folder) for folder in folders)


def targets(node: Any) -> Iterator[str]:
    """The `_target_`s of a configuration, however deep."""
    if isinstance(node, Mapping):
        if isinstance(node.get("_target_"), str):
            yield node["_target_"]
        node = list(node.values())
    if isinstance(node, list | tuple):
        for inner in node:
            yield from targets(inner)


def place(module: str) -> tuple[Path, Path] | None:
    """A module's file, and the folder that it is imported from; None for one without a file."""
    found = sys.modules.get(module)
    spec = getattr(found, "__spec__", None) or importlib.util.find_spec(module.partition(".")[0])
    file = getattr(found, "__file__", None) or (spec.origin if spec else None)
    if not file or file in ("built-in", "frozen") or not Path(file).is_file():
        return None
    path = Path(file).resolve()
    depth = module.count(".") + (path.stem == "__init__")
    return path, path.parents[depth]


def files(target: str) -> dict[str, Path]:
    """The user's own files that a `_target_` consists of: its module and those that it imports of its folder.

    Of an installed package that is the module's file alone; of lbdist and PyTorch none, whose versions are
    kept elsewhere.

    Args:
        target: The dotted path of a class or a function.

    Returns:
        Each file by its path in the folder that it is imported from.
    """
    if target.partition(".")[0] in (LBDIST, *_LIBRARIES):
        return {}
    try:
        module = pkgutil.resolve_name(target).__module__
    except (ImportError, AttributeError, ValueError):
        module = target.rpartition(".")[0]
    found = place(module) if module else None
    if found is None or module.partition(".")[0] in (LBDIST, *_LIBRARIES):
        return {}
    file, root = found
    if installed(file):
        return {f"{file.relative_to(root)}": file}
    seen: dict[str, Path] = {}
    waiting = [file]
    while waiting:
        file = waiting.pop()
        name = f"{file.relative_to(root)}"
        if name not in seen:
            seen[name] = file
            waiting += _imported(file, root)
    return seen


def _imported(file: Path, root: Path) -> list[Path]:
    """The files of a folder that one of them imports, anywhere in it."""
    try:
        tree = ast.parse(file.read_bytes())
    except SyntaxError:
        return []
    names: set[str] = set()
    package = file.relative_to(root).parent.parts
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            names |= {base} | {f"{base}.{alias.name}".strip(".") for alias in node.names}
    found = []
    for name in names:
        parts = name.split(".")
        for stop in range(1, len(parts) + 1):  # a package's own file runs as well
            at = root.joinpath(*parts[:stop])
            found += [path for path in (at.with_suffix(".py"), at / "__init__.py") if path.is_file()]
    return found


def of(nodes: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """What configuration nodes are computed by: a digest of lbdist, and of each `_target_` of the user's.

    Example:
        >>> list(of([{"_target_": "torch.optim.Adam", "lr": 0.1}]))
        ['lbdist']
    """
    return {LBDIST: of_lbdist(), **_of(tuple(sorted(set(targets(list(nodes))))))}


@functools.cache
def _of(names: tuple[str, ...]) -> dict[str, str]:
    found = {name: files(name) for name in names}
    return {name: _digest(own) for name, own in found.items() if own}


def modules(names: Collection[str]) -> dict[str, Path]:
    """The user's own modules that classes need, each by its path: their files, and all of their packages.

    Args:
        names: Dotted names of the classes.
    """
    found: dict[str, Path] = {}
    for name in sorted(names):
        found |= {at: file for at, file in files(name).items() if not installed(file)}
    for at, file in list(found.items()):
        package, *rest = Path(at).parts
        if rest:
            root = file.parents[len(rest)]
            found |= {f"{path.relative_to(root)}": path for path in (root / package).rglob("*.py")}
    return found


def of_files(node: Mapping[str, Any]) -> dict[str, str]:
    """A digest of each file that a node names, such as the weights of a network, by the file's path."""
    named = [value for value in node.values() if isinstance(value, str) and "\0" not in value]
    paths = [Path(value).expanduser() for value in named if 0 < len(value) < 4096]
    return {str(path): _file_digest(path, *_version(path)) for path in paths if path.is_file()}


def _version(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_ctime_ns


@functools.cache
def _file_digest(path: Path, *version: int) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()[:8]
