"""What people type leads, in one line, to what lbdist calls it; and what the line says is taken."""

from __future__ import annotations

import dataclasses

import pytest

from lbdist.config import meant
from lbdist.config.choices import config_root
from lbdist.config.compose import compose
from lbdist.config.schema import Config
from lbdist.config.sweep import compose_sweep
from lbdist.errors import InputError
from lbdist.run import main

# what is typed, what the line says, and what it leads to
MISTAKES = [
    ("batch_size=64", "SB's is small_batch, LB's large_batch", "small_batch=64 large_batch=512"),
    ("lr=0.01", "did you mean optimizer.lr?", "optimizer.lr=0.01"),
    ("learning_rate=0.01", "did you mean optimizer.lr?", "optimizer.lr=0.01"),
    ("optimizer.learning_rate=0.01", "did you mean optimizer.lr?", "optimizer.lr=0.01"),
    ("device=cuda", "all GPUs are used that CUDA_VISIBLE_DEVICES leaves", "num_workers=2"),
    ("num_gpus=2", "num_workers= is how many a run takes", "num_workers=2"),
    ("workers=2", "did you mean num_workers?", "num_workers=2"),
    ("network=resnet18", "did you mean network._target_=torchvision.models.resnet18?",
     "network._target_=torchvision.models.resnet18 network.num_classes=10"),
    ("network=mlpp", "did you mean network=mlp?", "network=mlp"),
    ("network.depth=3", "network=mlp has inputs, widths, classes", "network.widths=[64]"),
    ("model=f1", "network= is one of lbdist's", "network=f1"),
    ("data=imagefolder", "did you mean data=folder?", "data=folder data.root=x"),
    ("data=CIFAR10", "did you mean data=cifar10?", "data=cifar10"),
    ("data=./photos", "where it lies is data.root=./photos, and data= how", "data=folder data.root=./photos"),
    ("data=csv", "did you mean data=table?", "data=table data.root=x"),
    ("data=folder data.path=x", "did you mean data.root?", "data=folder data.root=x"),
    ("dataset=mnist", "did you mean data?", "data=mnist"),
    ("loss=mse", "did you mean loss=mean_squared_error?", "loss=mean_squared_error"),
    ("optimizer=SGD", "did you mean optimizer=sgd?", "optimizer=sgd"),
    ("optimizer=rmsprop", "optimizer._target_=PACKAGE.CLASS", "optimizer._target_=torch.optim.RMSprop"),
    ("optimizer.momentum=0.9", "optimizer=sgd has optimizer.momentum",
     "optimizer=sgd optimizer.momentum=0.9"),
    ("optimizer.amsgrad=true", "torch.optim.Adam takes it as +optimizer.amsgrad=", "+optimizer.amsgrad=true"),
    ("experiment=remedy", "did you mean experiment=remedies?", "experiment=remedies"),
    ("measure=hessian", "did you mean measure=spectrum?", "measure=spectrum"),
    ("remedies=[robust]", "did you mean remedy?", "remedy=[robust]"),
    ("seed=3", "seeds= is how many", "seeds=3"),
    ("num_epochs=3", "did you mean epochs?", "epochs=3"),
    ("output_dir=x", "did you mean storage?", "storage=x"),
    ("amp=true", "did you mean precision?", "precision=bfloat16"),
    ("resume=true", "the same command, given once more, goes on", "experiment=gap"),
    ("search.trials=3", "search has seeds, samples", "search.samples=3"),
    ("schedule.warm_up=3", "did you mean schedule.warmup?", "schedule.warmup=3"),
    ("measure.sharpness.radius=1", "measure.sharpness has epsilons, spaces",
     "measure.sharpness.epsilons=[1]"),
    ("remedy.robust.radius=1", "remedy.robust has rho, ascent_steps", "remedy.robust.rho=1"),
    ("ghost_batch=32", "did you mean ghost_batch_size?", "ghost_batch_size=32"),
]  # fmt: skip


@pytest.mark.parametrize(("typed", "said", "way"), MISTAKES, ids=[typed for typed, _, _ in MISTAKES])
def test_a_typical_mistake_leads_to_what_is_taken(typed: str, said: str, way: str) -> None:
    with pytest.raises(InputError) as refused:
        compose(typed.split())
    line = str(refused.value)
    assert said in line and typed.split()[-1].partition("=")[0] in line and "\n" not in line
    compose(way.split())


@pytest.mark.parametrize("typed", ["batch_size", "micro", "device", "classes", "inputs", "resume", "sampels"])
def test_a_key_of_another_meaning_is_not_suggested(typed: str) -> None:
    with pytest.raises(InputError) as refused:
        compose([f"{typed}=3"])
    assert "micro_batch_size?" not in str(refused.value) and "derived" not in str(refused.value)


def test_every_suggested_key_exists() -> None:
    """A key of lbdist's that is renamed must be renamed here too."""
    names = {field.name for field in dataclasses.fields(Config)}
    for way in meant._KEYS.values():
        if " " not in way:
            assert way.partition(".")[0] in names, way
    for group, others in meant.CHOICES.items():
        known = {path.stem for path in (config_root() / group).glob("*.yaml")}
        assert set(others.values()) <= known


def test_a_class_of_another_kind_is_refused_with_the_way_on() -> None:
    """As torchvision's ImageFolder is, which is no source of data sets."""
    from lbdist.config.build import build
    from lbdist.data.base import DataSource

    with pytest.raises(InputError, match=r"must be a lbdist\.data\.base\.DataSource; data=folder reads"):
        build({"_target_": "torchvision.datasets.ImageFolder", "root": "x"}, "data", kind=DataSource)
    with pytest.raises(InputError, match=r"did you mean torchvision\.models\.resnet18\?"):
        build({"_target_": "resnet18"}, "network")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("gapp", "gapp: must be a study (--help lists them)"),
        ("gapp", "did you mean gap?"),
        ("gap remedies", "remedies: must be a study"),
        ("--epochs 3", "a key is set by epochs=VALUE"),
        ("gap -m", "-m: must be given with a key of several values"),
        ("gap data=mnist1d,cifar10 -m", "data=mnist1d,cifar10: must be one value, since the points of a"),
        ("gap network=f1,mlp -m", "network=f1,mlp: must be one value"),
        ("paper epochs=1,2 -m", "-m: must be left out of a study that consists of others"),
        ("gap epochs=2,2 -m", "-m: must have each point once, not epochs=2 twice"),
        ("gap epochs=2,abc -m", "epochs=abc: must be a whole number"),
        ("gap nothing=2,3 -m", "nothing=2: there is no key nothing"),
        ("gap optimizer.lr=0.1,0.2", "-m runs a study at each"),
        ("gap schedule.gamma=0.1,0.2 -m", "schedule.gamma=0.1 and schedule.gamma=0.2 are the same runs"),
    ],
)  # fmt: skip
def test_wrong_words(
    words: str,
    said: str,
    capsys: pytest.CaptureFixture[str],
    mnist1d_cache: object,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(mnist1d_cache))
    assert main(words.split()) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("lbdist: ") and err.count("\n") == 1 and said in err, err


def test_a_sweep_is_a_grid() -> None:
    whole, parts = compose_sweep(
        ["experiment=gap", "optimizer.lr=0.001,0.003", "epochs=range(2,5)", "seeds=2"]
    )
    assert whole.name == "gap-by-optimizer.lr-epochs" and len(parts) == 6
    assert {(part.optimizer.lr, part.epochs) for part in parts.values()} == {
        (lr, epochs) for lr in (0.001, 0.003) for epochs in (2, 3, 4)
    }
    assert all(part.seeds == 2 and part.name == "gap" for part in parts.values())
    named, _ = compose_sweep(["experiment=gap", "name=mine", "small_batch=16,32"])
    assert named.name == "mine"


def test_versions_and_the_other_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("lbdist ")
    assert main(["gap", "--cfg", "job"]) == 0
    assert "name: gap\n" in capsys.readouterr().out
