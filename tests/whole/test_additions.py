"""An addition is one Python file and one YAML: each kind comes from a folder of the user's, and all run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lbdist import results
from lbdist.config import schema
from lbdist.config.compose import compose, config_root
from lbdist.errors import InputError
from lbdist.run import main
from tests.support.commands import serially

CODE = '''
"""A regression task and a study of somebody's own."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from lbdist.analysis.section import Entry, Section, Table, of_number
from lbdist.data.base import Dataset, DataSource, Split
from lbdist.errors import require
from lbdist.losses import Loss
from lbdist.remedies.base import Remedy
from lbdist.sharpness.measure import Measure
from lbdist.studies.base import Study


@dataclass
class Planes(DataSource):
    slope: float = 2.0

    def read(self):
        random = np.random.default_rng(0)

        def split(count):
            inputs = random.normal(size=(count, 6)).astype("f4")
            return Split(inputs, (self.slope * inputs.sum(1)).astype("f4"))

        return Dataset(split(400), split(100))


class Wide(nn.Sequential):
    def __init__(self, inputs, outputs):
        super().__init__(nn.Linear(inputs, 16), nn.Tanh(), nn.Linear(16, outputs), nn.Flatten(0))


@dataclass
class Absolute(Loss):
    score = "closeness"
    unit = ""

    def total(self, outputs, targets):
        return (outputs - targets).abs().sum()

    def scored(self, outputs, targets):
        return ((outputs - targets).abs() < 0.5).double().sum()[None]

    def value(self, sums, samples):
        return float(sums[0]) / samples

    def check(self, data):
        require(data.train.labels.dtype.kind == "f", "loss", "absolute", "for numbers")
        return ()


@dataclass
class Halved(Remedy):
    share: float = 0.5

    def __post_init__(self):
        require(self.share > 0, "share", self.share, "above 0")

    def gradient(self, learner, batch):
        learner.gradient(batch)
        learner.g.mul_(self.share)


@dataclass
class Norm(Measure):
    power: float = 2.0

    def __call__(self, at):
        return [{"metric": "norm", "value": float(at[0].x.norm(self.power))}]


@dataclass
class Doubling(Study):
    doublings: int = 2

    def cells(self, done):
        for power in range(self.doublings + 1):
            batch = self.plan.small_batch * 2**power
            yield self.plan.cell(batch, seed=0)
        yield self.plan.cell("LB", {"halved": {}}, seed=0)

    def sections(self, runs, done):
        norms = runs.others["norm"]
        rows = [[Entry(label), of_number(norms[label].mean, 3)] for label in sorted(norms)]
        said = [f"The best closeness is {runs.counted.score.max():.2f}."]
        table = Table("norms", "Norm by batch", ["batch", "norm"], rows)
        return [Section("Norms", said, [table], brief=True)]
'''
YAMLS = {
    "data/planes": "# planes through the origin\n_target_: own_parts.Planes\nname: planes\nslope: 2.0\n",
    "network/wide": "# one wide layer\n_target_: own_parts.Wide\nname: wide\n"
    "inputs: ${derived.inputs}\noutputs: 1\n",
    "loss/absolute": "# absolute error\n_target_: own_parts.Absolute\nname: absolute\n",
    "optimizer/rmsprop": "# RMSprop\n_target_: torch.optim.RMSprop\nname: rmsprop\nlr: 0.01\n",
    "remedy/halved": "# half of every gradient\nhalved:\n  _target_: own_parts.Halved\n  share: 0.5\n",
    "measure/norm": "# a norm of the parameters\nnorm:\n  _target_: own_parts.Norm\n  power: 2.0\n",
    "experiment/doubling": "# @package _global_\n# batches that double\nname: doubling\n"
    "scale:\n  doublings: {quick: 2, paper: 5}\n"
    "study:\n  _target_: own_parts.Doubling\n  doublings: ${scale.doublings.${scale.name}}\n",
}
TASK = ["data=planes", "network=wide", "loss=absolute"]


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """The user's folder."""
    folder = tmp_path / "own"
    for name, text in YAMLS.items():
        path = folder / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "own_parts.py").write_text(CODE)
    return folder


@pytest.mark.parametrize(
    ("kind", "arguments", "said", "wrong"),
    [
        ("data", [*TASK], "wide on planes", "data.slope=x"),
        ("network", [*TASK], "wide on planes", "network.outputs=0"),
        ("loss", [*TASK], "6 cells", "data=mnist1d"),
        ("optimizer", [*TASK, "optimizer=rmsprop"], "0.01", "optimizer.lr=-1"),
        ("remedy", [*TASK, "remedy=[none,halved]"], "LB + halved", "remedy.halved.share=0"),
        ("measure", [*TASK, "measure=[norm]"], "6 measurements", "measure.norm.power=x"),
        ("study", [*TASK, "experiment=doubling", "remedy=halved"], "batch 128", "study.doublings=x"),
    ],
)
def test_each_kind_of_addition(
    kind: str,
    arguments: list[str],
    said: str,
    wrong: str,
    own: Path,
    mnist1d_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.syspath_prepend(str(own))
    monkeypatch.setenv("XDG_CACHE_HOME", str(mnist1d_cache))
    first = [
        f"--config-dir={own}",
        "experiment=gap",
        "seeds=2",
        "large_batch=200",
        "dry_run=true",
    ]
    if kind == "study":
        first = [first[0], *first[2:]]
    assert main([*first, *arguments]) == 0
    assert said in capsys.readouterr().out
    assert main([*first, *arguments, wrong]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["--config-dir", str(own), "--help"]) == 0
    listed = capsys.readouterr().out
    assert all(name.rpartition("/")[2] in listed for name in YAMLS)


def test_a_study_brings_its_values_by_scale_and_a_remedy_joins_the_studies_of_all(own: Path) -> None:
    """Neither the scales, nor the schema, nor the studies have to know of them."""
    for scale, doublings in (("quick", 2), ("paper", 5)):
        config = compose(["experiment=doubling", f"scale={scale}"], [own])
        schema.check(config)
        assert config.study.doublings == doublings
    shipped = {path.stem for path in (config_root() / "remedy").glob("*.yaml")}
    for study in ("remedies", "scaling", "advise"):
        assert set(compose([f"experiment={study}"]).remedy) == shipped
        assert set(compose([f"experiment={study}"], [own]).remedy) == shipped | {"halved"}
    assert set(compose(["experiment=gap", "remedy=all"]).remedy) == shipped
    with pytest.raises(InputError, match=r"^remedy=every: must be one or more of .*, all$"):
        compose(["remedy=every"])


def test_all_additions_together_run_to_a_report(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(own))
    arguments = ["--config-dir", str(own), "experiment=doubling", *TASK, "optimizer=rmsprop", "remedy=halved"]
    arguments += ["measure=[norm]", "small_batch=25", "large_batch=100", "epochs=3"]
    out = serially(tmp_path / "out", *arguments, shrunk=[])
    assert "test closeness 0." in out and "The best closeness is 0." in out
    assert re.search(r"batch 50 +\d", out) and re.search(r"LB \+ halved +\d", out)
    rows = results.load(tmp_path / "out" / "doubling")
    assert set(rows["metric"]) >= {"closeness", "loss", "norm"}
    assert rows.query("metric == 'norm'")["measure"].eq("norm").all()
    assert "Norm by batch" in (tmp_path / "out" / "doubling" / "report.html").read_text()
    assert (tmp_path / "out" / "doubling" / "tables" / "norms.csv").read_text().startswith("batch,norm\n")
