"""README's commands and code, as written there."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

import lbdist.results
from lbdist.analysis import critical, timings, to_score
from lbdist.analysis.claims import claims
from lbdist.analysis.numbers import interval, number, percent
from lbdist.analysis.runs import Runs
from lbdist.analysis.sections import break_even
from lbdist.analysis.sections.benchmark import sentences, speeds
from lbdist.analysis.statistics import Difference, difference, summarise
from lbdist.data import kaldi
from lbdist.networks.convolutional import Shallow
from lbdist.run import main
from tests.support.files import encode, experiment, utterances, write_idx, write_parquet
from tests.support.layouts import npz, tar
from tests.support.repository import BLOCKS, EVIDENCE, ROOT, own_files

# those of a cluster: see tests/cluster
COMMANDS = [
    line.partition(" #")[0].strip().rpartition("&& ")[2]
    for kind, text in BLOCKS
    if kind == "bash"
    for line in text.splitlines()
    if ("-m lbdist." in line or line.startswith("lbdist ")) and not line.startswith("ray ")
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with MNIST's layout in `data`, a folder `DIR` of images in Parquet, and Kaldi's of TIMIT."""
    folder = tmp_path_factory.mktemp("home")
    random = np.random.default_rng(0)
    sizes = {"train": 3000, "t10k": 20}
    pixels = {part: random.integers(0, 256, (n, 28, 28), np.uint8) for part, n in sizes.items()}
    labels = {part: np.arange(n, dtype=np.uint8) % 10 for part, n in sizes.items()}
    write_idx(folder / "data" / "MNIST" / "raw", pixels, labels)
    images = [encode(random.integers(0, 256, (32, 32, 3), np.uint8)) for _ in range(4)]
    for name, count in (("train", 400), ("test", 8), ("validation", 8)):
        write_parquet(folder / "DIR" / f"{name}.parquet", images * (count // 4), [0, 1, 2, 9] * (count // 4))
    _bring(folder, random)
    speech = utterances(400)
    experiment(folder, "data-fmllr-tri3/train", "exp/tri3_ali/pdf", speech)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert kaldi.main(next(shlex.split(c) for c in COMMANDS if "kaldi" in c)[3:]) == 0
    (folder / "MODELS").mkdir()
    torch.save(Shallow().state_dict(), folder / "MODELS" / "one.pt")
    torch.save(torchvision.models.resnet18(num_classes=10).state_dict(), folder / "r18.pt")
    return folder


def _bring(home: Path, random: np.random.Generator) -> None:
    """What a user brings: photos of several sizes, digits, houses, shards, reviews, and a model."""
    for at in range(420):
        file = home / "PHOTOS" / ("train", "test")[at >= 400] / ("cat", "dog")[at % 2] / f"{at}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        size = (*random.integers(40, 90, 2), 3)
        file.write_bytes(encode(random.integers(0, 256, size, np.uint8), "JPEG"))
    count = {"train": 400, "test": 20}
    digits = {
        split: (random.integers(0, 256, (n, 28, 28), np.uint8), np.arange(n) % 10)
        for split, n in count.items()
    }
    reviews = {split: (random.integers(0, 50, (n, 12)), np.arange(n) % 2) for split, n in count.items()}
    for name, splits in (("digits", digits), ("reviews", reviews)):
        npz(home, splits, name)
    (home / "SHARDS").mkdir()
    shards = {
        split: (random.integers(0, 256, (n, 3, 32, 32), np.uint8), np.arange(n) % 10)
        for split, n in count.items()
    }
    tar(home / "SHARDS", shards)
    for name, text in own_files().items():
        (home / name).write_text(text)
    rows = [
        (1 + at % 5, 80.5 + at % 37, ("Ulm", "Bonn")[at % 2], 90000 + 1000 * (at % 37)) for at in range(450)
    ]
    lines = ["rooms,area,town,price", *(",".join(map(str, row)) for row in rows)]
    (home / "houses.csv").write_text("\n".join(lines))
    (home / "my_words.py").write_text(
        "from torch import nn\n\n\nclass Bag(nn.Sequential):\n    def __init__(self):\n"
        "        super().__init__(nn.Embedding(50, 4), nn.Flatten(), nn.Linear(48, 2))\n"
    )


def test_there_are_commands_of_every_kind() -> None:
    assert len(COMMANDS) >= 8
    for word in ("--help", "dry_run=true", "experiment=remedies", "experiment=warm_start", "data=parquet"):
        assert any(word in command for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_taken_as_written(
    command: str,
    home: Path,
    mnist1d_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    unestimated: None,
) -> None:
    """Up to what would run; the default study itself is run, shrunk, elsewhere."""
    monkeypatch.chdir(home)
    monkeypatch.syspath_prepend(str(home))
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CACHE_HOME", str(mnist1d_cache))
    words = shlex.split(os.path.expandvars(command))
    if words[0] == "lbdist":
        words = ["python", "-m", "lbdist.run", *words[1:]]
    assert words[:2] == ["python", "-m"]
    rest = words[3:]
    if words[2] == "lbdist.data.kaldi":
        assert kaldi.main(rest) == 0
        return
    if words[2] in ("lbdist.export", "lbdist.compare"):
        pytest.skip("of finished studies: below")
    assert words[2] == "lbdist.run"
    asks = {"--help", "dry_run=true"} & set(rest)
    assert main([*rest, *([] if asks else ["dry_run=true"])]) == 0
    out, err = capsys.readouterr()
    assert err == "" and len(out.splitlines()) > (1 if "checkpoint=" in command else 4)
    assert not (home / "results").exists()


@pytest.mark.parametrize("module", sorted(own_files()))
def test_what_is_the_users_own_trains_as_written(
    module: str, home: Path, mnist1d_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command that names it, shrunk, to its report."""
    assert len(own_files()[module].strip().splitlines()) <= 15
    (command,) = (line for line in dict.fromkeys(COMMANDS) if module.removesuffix(".py") + "." in line)
    monkeypatch.chdir(home)
    monkeypatch.syspath_prepend(str(home))
    monkeypatch.setenv("XDG_CACHE_HOME", str(mnist1d_cache))
    small = ["executor=serial", "measure=[fit]", "epochs=1", "seeds=1", f"storage={tmp_path}"]
    small += ["study.equal_loss=null", "study.check_workers=null", "study.check_precision=null"]
    assert main([*shlex.split(command)[3:], *small]) == 0
    (page,) = tmp_path.glob("*/report.html")
    name = {"my_model.py": "Wide on mnist1d", "my_remedy.py": "LB + clip", "my_data.py": "on dataset"}
    assert name.get(module, "LB") in page.read_text()


def test_the_layout_names_every_room() -> None:
    package = ROOT / "lbdist"
    rooms = {path.name.removesuffix(".py") for path in package.iterdir()}
    rooms = {name for name in rooms if not name.startswith(("_", "py.", "README"))}
    rooms -= {"experiments"}  # the configuration, inside an installed package
    text = (ROOT / "lbdist" / "README.md").read_text()
    layout = text[: text.index("## Tests")]
    named = {name.rstrip("/") for name in re.findall(r"`([\w/]+)`", layout)}
    assert rooms - {"random"} <= named, rooms - named


ROWS = ROOT / "experiments" / "evidence"


def test_the_papers_numbers_are_those_of_the_evidence() -> None:
    """Of Figures 4 and 6, only the parts of the study know which rows are theirs."""
    found = claims(Runs(lbdist.results.load(ROWS / "mnist1d")))
    told = [claim for claim in found if claim.where not in ("Figure 4", "Figure 6")]
    assert len(told) == 15
    for claim in told:
        assert f"| {claim.text} | {claim.verdict} | {claim.ours} | {claim.theirs} |" in EVIDENCE
    runs = Runs(lbdist.results.load(ROWS / "f1-mnist")).counted
    table = EVIDENCE[EVIDENCE.index("On the paper's own F1") :]
    for column, row in (("train_score", "train accuracy, %"), ("score", "test accuracy, %")):
        values = [percent(summarise(runs.loc[runs["label"] == label, column])) for label in ("SB", "LB")]
        assert re.search(rf"\| {row} \| {values[0]} \(.*\) \| {values[1]} \(", table)
    gap = difference(*(runs.loc[runs["label"] == label, "score"] for label in ("SB", "LB")))
    assert f"| gap, points | | {number(gap.mean, 2)}, 95 % interval {interval(gap)} (0.22) |" in table


@pytest.mark.parametrize(
    ("folder", "what"),
    [
        ("f1-mnist-4000", "F1, 4,000 images of MNIST"),
        ("f2-fsdd-4000", "F2, 4,000 frames of spoken digits"),
        ("c1-cifar10-2000", "C1, 2,000 images of CIFAR-10"),
        ("c1-cifar10", "C1, 50,000 images of CIFAR-10"),
    ],
)
def test_a_row_of_a_network_is_that_of_its_evidence(folder: str, what: str) -> None:
    runs = Runs(lbdist.results.load(ROWS / folder))
    cells, said = runs.counted, {claim.text: claim.ours for claim in claims(runs)}
    scores = [cells.loc[cells["label"] == label, "score"] for label in ("SB", "LB")]
    row = [what, str(len(scores[0])), *(percent(summarise(score)) for score in scores)]
    row += [said["LB generalises worse than SB"], said.get("LB is sharper: full space, ε 1e-3", "–")]
    row.append(said["SB ends 3 to 10 times as far from x0 as LB"])
    assert f"| {' | '.join(row)} |" in EVIDENCE


def test_the_table_of_speeds_is_the_evidence() -> None:
    data = speeds(Runs(lbdist.results.load(ROWS / "f1-mnist-20000-benchmark")))
    rows = data[(data["workers"] == 1) | ~data["procedure"].str.startswith("bare")]
    assert len(rows) == 16
    for (workers, procedure), group in rows.groupby(["workers", "procedure"]):
        pairs = [
            f"{number(row['rate'].mean)} ± {number(row['rate'].std)} | {number(row['whole'].mean, 1)}"
            for _, row in group.sort_values("batch").iterrows()
        ]
        assert f"| {procedure} | {workers} | {' | '.join(pairs)} |" in EVIDENCE
    assert sentences(data)[-3] in " ".join(EVIDENCE.split())


def test_what_is_said_of_figure_6_is_the_evidence() -> None:
    runs = Runs(lbdist.results.load(ROWS / "f1-mnist-4000-along"))
    said = [claim.ours for claim in claims(runs) if claim.where == "Figure 6"]
    assert len(said) == 2 and f"it is {said[0]} what" in EVIDENCE and f"SB's {said[1]}." in EVIDENCE


@pytest.mark.parametrize(
    ("folder", "what"),
    [
        ("mnist1d-scaling", "MLP, MNIST-1D, SB 32, LB 400"),
        ("f1-mnist-12000-scaling", "F1, 12,000 images of MNIST, SB 64, LB 1,200"),
    ],
)
def test_what_is_said_of_scaling_is_the_evidence(folder: str, what: str) -> None:
    runs = Runs(lbdist.results.load(ROWS / folder))
    data, timed = to_score.points(runs), timings.timed(runs)
    goal = break_even.targets(data)["SB and LB"]
    for clock in break_even.measured_clocks(timed):
        (found,) = (v for v in break_even.verdicts(data, clock, goal) if v.label == "LB")
        times = Difference(found.faster.mean, found.faster.low, found.faster.high)
        row = [what, number(goal, 2), number(clock.workers), number(found.steps.mean, 2)]
        row += [
            number(found.bound, 2),
            number(found.paper, 2),
            f"{number(found.faster.mean, 2)} ({interval(times)})",
        ]
        assert f"| {' | '.join(row)} |" in EVIDENCE
    if folder == "mnist1d-scaling":
        plain = data[data["remedy"] == "none"]
        top = critical.targets(plain)[-1]
        fit = critical.by_steps(critical.curves(data, [top]), top)
        assert fit is not None
        ends = f"{number(fit.critical)} ({number(fit.low)} to {number(fit.high)})"
        noise = critical.noise(runs).set_index("epoch")["noise"][5]
        branched = critical.branches(runs, 0.01).set_index("epoch")["batch"][5]
        said = " ".join(EVIDENCE.split())
        assert f"is {ends} by the steps to {number(top, 1)} %, {branched} by branching from epoch 5" in said
        assert f"and {number(noise.mean)} ({number(noise.low)} to {number(noise.high)}) by the noise" in said
