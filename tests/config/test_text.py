"""What a user types is what a key of text gets."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from lbdist.config.compose import compose
from lbdist.config.text import unparsed
from lbdist.errors import InputError
from lbdist.processes import for_shell
from lbdist.run import main


@pytest.mark.parametrize(
    "text", ["2024_01_01", "1e3", "10", "007", "true", "1_0.5", "inf", "données", "it", "a b"]
)
@pytest.mark.parametrize("key", ["storage", "data.root", "data.label", "checkpoint"])
def test_text_is_what_was_typed(text: str, key: str) -> None:
    data = ["data=arrays"] if key.startswith("data") else []
    assert OmegaConf.select(compose([*data, f"{key}={text}"]), key) == text


@pytest.mark.parametrize(
    ("override", "found"),
    [
        ("data.inputs=[1_0,2.50,c]", ["1_0", "2.50", "c"]),
        ("data.label=[2024,true]", ["2024", "true"]),
        ("data.label=2024", "2024"),
        ("data.splits={train: 1_0, test: 2e1}", {"train": "1_0", "test": "2e1"}),
        ("data.held_out=2.5e-1", 0.25),
        ("data.train_samples=1_000", 1000),
        ("data.mean=[1e-1,0.5]", [0.1, 0.5]),
        ("data.relabel=true", True),
        ("data.root=null", None),
        ("data.root=~/a=b:c", "~/a=b:c"),
        ("data.root=./it's", "./it's"),
        ("data.root=s3://bucket/a=b", "s3://bucket/a=b"),
        ("data.root='1_0'", "1_0"),
    ],
)
def test_numbers_stay_numbers(override: str, found: object) -> None:
    assert OmegaConf.to_container(compose(["data=table", override]).data)[override.split("=")[0][5:]] == found  # type: ignore[index, call-overload]


def test_arguments_of_a_class_of_the_user_s_are_what_they_take() -> None:
    """As their annotations say; where these say nothing, a number is one."""
    config = compose(
        ["data=dataset", "data.train._target_=torchvision.datasets.MNIST", "data.train.root=2024_01"]
    )
    assert config.data.train.root == "2024_01"
    config = compose(
        ["network._target_=torch.nn.Linear", "network.in_features=1_0", "network.out_features=2"]
    )
    assert config.network.in_features == 10


@pytest.mark.parametrize(
    "text", ["checkpoint=epoch=9-step=100.ckpt", "storage=it's", "data.root=a,b=c", "storage=[a"]
)
def test_what_hydra_cannot_parse_says_how_to_quote_it(text: str) -> None:
    with pytest.raises(InputError) as caught:
        compose([text])
    said = str(caught.value)
    assert said == unparsed(text) and "; text is put in quotes: " in said
    key, _, value = text.partition("=")
    (again,) = shlex.split(said.partition("in quotes: ")[2])
    assert OmegaConf.select(compose([again]), key) == value


@pytest.mark.parametrize(
    "text", ["hydra.run.dir=foo", "hydra.job.chdir=true", "hydra/launcher=basic", "+hydra.x=1"]
)
def test_keys_without_effect_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="must be left out: it has no effect here"):
        compose([text])


@settings(max_examples=200, deadline=None)
@given(words=st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), max_size=4))
def test_a_command_to_go_on_by_is_read_back(words: list[str]) -> None:
    assert shlex.split(" ".join(map(for_shell, words))) == words


def test_a_dry_run_finds_out_that_results_cannot_be_written(
    cache: str, tmp_path: Path, unestimated: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["experiment=gap", "executor=serial", "dry_run=true", cache, "storage=/proc/lbdist"]) == 2
    _, err = capsys.readouterr()
    assert (
        err.startswith("lbdist: storage: /proc/lbdist must be a place to write in") and err.count("\n") == 1
    )
    good = tmp_path / "new/results"
    assert main(["experiment=gap", "executor=serial", "dry_run=true", cache, f"storage={good}"]) == 0
    assert not (tmp_path / "new").exists()
