"""The wheel holds all that the program needs: it is built, installed away from the checkout, and run."""

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests.support.repository import ROOT as REPOSITORY
from tests.support.repository import project


def run(command: Sequence[str | Path], folder: Path, **environment: str) -> str:
    """A command's standard output; it must end well and say nothing of a failure."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        env={**clean, **environment},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, REPOSITORY]
    run(command, folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel; the dependencies, but not this checkout, come from the parent's."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python]
    run([*pip, "install", "--quiet", "--no-deps", "--no-index", wheel], folder)
    (packages,) = folder.glob("lib/python*/site-packages")
    paths = dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    (packages / "dependencies.pth").write_text("\n".join(paths) + "\n")  # .pth files there are not read
    return folder


def test_contents(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as opened:
        names = set(opened.namelist())
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        about = opened.read(metadata).decode()
        (scripts,) = (name for name in names if name.endswith(".dist-info/entry_points.txt"))
        assert "lbdist = lbdist.run:program" in opened.read(scripts).decode()
    sources = [path for path in (REPOSITORY / "lbdist").rglob("*") if "__pycache__" not in path.parts]
    wanted = {path.relative_to(REPOSITORY).as_posix() for path in sources if path.is_file()}
    yamls = (REPOSITORY / "experiments").rglob("*.yaml")
    wanted |= {f"lbdist/{path.relative_to(REPOSITORY).as_posix()}" for path in yamls}
    assert {"lbdist/py.typed", "lbdist/analysis/report.html.jinja"} <= wanted
    assert {"lbdist/experiments/config.yaml", "lbdist/experiments/experiment/gap.yaml"} <= wanted
    rest = names - wanted
    assert wanted <= names and all(".dist-info/" in name for name in rest), rest
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert "License-Expression: Apache-2.0" in about and "Requires-Python: >=3.10" in about


def test_the_source_distribution_makes_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    """So what is installed of it runs as the wheel does."""
    command = [sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", tmp_path, REPOSITORY]
    run(command, tmp_path)
    (packed,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(packed) as opened:
        opened.extractall(tmp_path, filter="data")
        assert not [name for name in opened.getnames() if "/evidence/" in name]
    (source,) = (path for path in tmp_path.iterdir() if path.is_dir())
    run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, source], tmp_path)
    (built,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(built) as one, zipfile.ZipFile(wheel) as other:
        assert set(one.namelist()) == set(other.namelist())
        for name in one.namelist():
            assert one.read(name) == other.read(name), name


def test_the_citation_is_of_this_version() -> None:
    text = (REPOSITORY / ".github" / "CITATION.cff").read_text()
    assert f"version: {project()['version']}\n" in text
    assert f"### {project()['version']}" in (REPOSITORY / "README.md").read_text()


def test_runs_without_the_repository(environment: Path, cache: str, tmp_path: Path) -> None:
    python = environment / "bin" / "python"
    where = run([python, "-c", "import lbdist; print(lbdist.__file__)"], tmp_path).strip()
    assert Path(where).is_relative_to(environment)
    told = run([environment / "bin" / "lbdist", "--help"], tmp_path)
    assert "remedies" in told and "mnist1d" in told
    for command in ([environment / "bin" / "lbdist"], [python, "-m", "lbdist"]):
        assert run([*command, "--version"], tmp_path) == f"lbdist {project()['version']}\n"
    for module in ("export", "compare"):
        assert "usage: " in run([python, "-m", f"lbdist.{module}", "--help"], tmp_path)
    arguments = [
        "experiment=gap",
        "study.equal_loss=null",
        "seeds=2",
        "dry_run=true",
        cache,
    ]
    told = run([python, "-m", "lbdist.run", *arguments], tmp_path)
    assert told.startswith("study gap: mlp on mnist1d, 4 cells")
    assert list(tmp_path.iterdir()) == []


def test_the_lowest_versions_that_are_tried_are_those_that_are_named() -> None:
    """tests/try_lowest_versions.sh installs them; a bound that nobody tries is a guess."""
    lines = (REPOSITORY / "tests" / "lowest_versions.txt").read_text().splitlines()
    tried = dict(line.split("==") for line in lines if not line.startswith("#"))
    asked = [
        Requirement(text) for text in project()["dependencies"] + project()["optional-dependencies"]["kaldi"]
    ]
    assert {wanted.name for wanted in asked} == set(tried)
    for wanted in asked:
        (least,) = (Version(part.version) for part in wanted.specifier if part.operator == ">=")
        # the first release that is at least that, whose number may be longer
        assert (
            wanted.specifier.contains(tried[wanted.name])
            and Version(tried[wanted.name]).release[: len(least.release)] == least.release
        ), wanted
