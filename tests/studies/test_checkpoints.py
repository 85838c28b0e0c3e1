"""Models of the user's own: what is read, what is refused, and the command from a file to a ranked report."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from lbdist import results
from lbdist.errors import InputError
from lbdist.run import main
from lbdist.training.checkpoint import load_file
from tests.support.commands import serially


def network(width: int = 16) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(40, width), nn.ReLU(), nn.Linear(width, 10))


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("echo unpickled > evil",)


STATE = network().state_dict()
WRAPPED = {f"module.{name}": tensor for name, tensor in STATE.items()}
READ = {
    "plain.pt": STATE,
    "model.pt": {"model": STATE, "epoch": 3},
    "state_dict.pth": {"state_dict": WRAPPED, "lr": 0.1},
    "wrapped.bin": WRAPPED,
    "compiled.pt": {f"_orig_mod.{name}": tensor for name, tensor in STATE.items()},
}
NAN = {**STATE, "2.bias": torch.full((10,), float("nan"))}
REFUSED = {
    "wider.pt": (network(8).state_dict(), "its 0.weight has shape (8, 40), and the network's (16, 40)"),
    "less.pt": ({k: v for k, v in STATE.items() if k != "2.weight"}, "it has no 2.weight"),
    "more.pt": ({**STATE, "4.weight": torch.ones(1)}, "this network, which has no 4.weight"),
    "nan.pt": (NAN, "its 2.bias holds NaN or infinity"),
    "text.pt": ({"model": "none"}, "must hold a state dict, by itself or under model or state_dict"),
    "whole.pt": (network(), "not a checkpoint of tensors"),
}


@pytest.mark.parametrize("name", [*READ, "plain.safetensors"])
def test_each_form_of_a_checkpoint_is_read(name: str, tmp_path: Path) -> None:
    if name.endswith("safetensors"):
        safetensors.torch.save_file(STATE, tmp_path / name)
    else:
        torch.save(READ[name], tmp_path / name)
    found = load_file(network(), tmp_path / name)
    assert found.keys() == STATE.keys() and all(torch.equal(found[key], STATE[key]) for key in STATE)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_checkpoint_of_the_network_is_one_line(name: str, tmp_path: Path) -> None:
    content, said = REFUSED[name]
    torch.save(content, tmp_path / name)
    with pytest.raises(InputError) as error:
        load_file(network(), tmp_path / name)
    assert str(error.value).startswith(f"checkpoint={tmp_path / name}: ")
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_pickle_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.pt").write_bytes(pickle.dumps({"model": Evil()}))
    with pytest.raises(InputError, match="not a checkpoint of tensors"):
        load_file(network(), tmp_path / "evil.pt")
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("given", ["nowhere.pt", "empty", "null"])
def test_no_file_is_one_line(
    given: str,
    tmp_path: Path,
    cache: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert main(["experiment=checkpoints", f"checkpoint={given}", cache]) == 2
    err = capsys.readouterr().err
    assert err.startswith("lbdist: checkpoint=") and "must be a file, or a folder with one" in err
    assert err.count("\n") == 1 and not (tmp_path / "results").exists()


OWN = """
from torch import nn

class Own(nn.Sequential):
    def __init__(self, width=16):
        super().__init__(nn.Linear(40, width), nn.ReLU(), nn.Linear(width, 10))
"""


def test_a_folder_of_checkpoints_of_a_network_of_ones_own_is_ranked(
    tmp_path: Path, cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same function under two scales of its layers: the rescaled one is the sharper."""
    (tmp_path / "own_network.py").write_text(OWN)
    (tmp_path / "mine").mkdir()
    steep = {name: tensor * (0.2 if name.startswith("0") else 5.0 if name == "2.weight" else 1)
             for name, tensor in STATE.items()}  # fmt: skip
    torch.save({"model": STATE}, tmp_path / "mine" / "even.pt")
    safetensors.torch.save_file(steep, tmp_path / "mine" / "steep.safetensors")
    (tmp_path / "conf" / "network").mkdir(parents=True)
    (tmp_path / "conf" / "network" / "own.yaml").write_text("# mine\n_target_: own_network.Own\nname: own\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    words = ["experiment=checkpoints", "checkpoint=mine", cache, "network=own", "--config-dir", "conf"]
    small = ["data.train_samples=300", "data.test_samples=100", "measure.sharpness.draws=2"]
    small += ["measure.sharpness.subspace_dimension=5", "measure.sharpness.solvers=[converged]"]

    def run() -> str:
        return serially(Path("results"), *words, shrunk=small)

    out = run()
    table = [line.split()[0] for line in out.splitlines() if line.startswith(("even", "steep"))]
    assert table[:2] == ["even.pt", "steep.safetensors"]
    assert "The flattest of 2 is even.pt: φ(1e-3) " in out
    rows = results.load(tmp_path / "results" / "checkpoints")
    assert set(rows["file"]) == {"even.pt", "steep.safetensors"} and rows["value"].notna().all()
    losses = rows.query("metric == 'loss' and split == 'train'")["value"]
    assert losses.max() == pytest.approx(losses.min(), rel=1e-5)
    assert "steep.safetensors" in (tmp_path / "results" / "checkpoints" / "report.html").read_text()
    assert "measurements to make" in out and "measurements to make" not in run()  # all is measured
