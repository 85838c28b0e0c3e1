"""Checkpoints as people have them are read as PyTorch reads them, or one line says what to do."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from lbdist.errors import InputError
from lbdist.studies.checkpoints import Checkpoints
from lbdist.training.user_checkpoint import load_file, read

State = dict[str, Tensor]


def made(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Sequential(nn.Linear(4, 3)))


STATE = made(1).state_dict()
AVERAGE = {key: value + 1 if value.is_floating_point() else value for key, value in STATE.items()}
WRAPPERS = ["module.", "_orig_mod.", "model.", "net.", "network.backbone."]


def before(prefix: str, state: State = STATE) -> State:
    return {f"{prefix}{key}": value for key, value in state.items()}


def right(found: Any, expected: State = STATE) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[k], v) for k, v in expected.items())


@given(
    st.lists(st.sampled_from(WRAPPERS), max_size=4),
    st.sampled_from([None, "model", "state_dict", "net", "trainer.model"]),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_wrappers_in_any_nesting_under_any_key(
    tmp_path_factory: pytest.TempPathFactory, wrappers: list[str], key: str | None, beside: bool
) -> None:
    content: Any = before("".join(wrappers))
    for part in reversed(key.split(".") if key else []):
        content = {part: content}
    if beside and key:
        optimizer = torch.optim.Adam(made().parameters()).state_dict()
        content |= {"epoch": 3, "best": np.float64(93.0), "args": argparse.Namespace(lr=0.1)}
        content |= {"optimizer": optimizer, "history": [1.0, 2.0], "step": torch.tensor(7)}
    file = tmp_path_factory.mktemp("c") / "x.pt"
    torch.save(content, file)
    network = made()
    kept = {name: value.clone() for name, value in network.state_dict().items()}
    assert right(load_file(network, file))
    assert right(network.state_dict(), kept)  # the network is as it was


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.e, self.h = nn.Embedding(6, 4), nn.Linear(4, 6, bias=False)
        self.h.weight = self.e.weight


def old_norm() -> nn.Module:
    return nn.Sequential(torch.nn.utils.weight_norm(nn.Linear(6, 3)))


@pytest.mark.filterwarnings("ignore")
def test_what_pytorch_itself_would_read(tmp_path: Path) -> None:
    file = tmp_path / "x.pt"
    torch.save({k: v for k, v in STATE.items() if "tracked" not in k}, file)
    found = load_file(made(), file)
    assert all(torch.equal(found[k], v) for k, v in STATE.items() if "tracked" not in k)
    torch.manual_seed(1)
    old, new = old_norm(), nn.Sequential(parametrizations.weight_norm(nn.Linear(6, 3)))
    torch.save(old.state_dict(), file)
    new.load_state_dict(load_file(new, file))
    torch.testing.assert_close(new[0].weight, old[0].weight)
    tied = Tied()
    safetensors.torch.save_model(tied, str(tmp_path / "t.safetensors"))
    assert right(load_file(Tied(), tmp_path / "t.safetensors"), tied.state_dict())
    mnasnet = torchvision.models.mnasnet0_5(num_classes=4)  # whose files of version 1 are upgraded
    safetensors.torch.save_file(mnasnet.state_dict(), tmp_path / "m.safetensors")
    assert right(load_file(mnasnet, tmp_path / "m.safetensors"), dict(mnasnet.state_dict()))


@pytest.mark.parametrize("place", ["beside", "inside"])
def test_an_average_beside_the_weights_is_told_and_can_be_chosen(place: str, tmp_path: Path) -> None:
    file = tmp_path / "x.pt"
    if place == "beside":
        torch.save({"state_dict_ema": AVERAGE, "state_dict": STATE}, file)
        names = "state_dict", "state_dict_ema"
    else:
        torch.save({"state_dict": before("model_ema.", AVERAGE) | before("model.")}, file)
        names = "state_dict.model", "state_dict.model_ema"
    found, said = read(made(), file)
    assert right(found) and said == f"took {names[0]}; checkpoint_key= takes {names[1]} beside it"
    found, said = read(made(), file, names[1])
    assert right(found, AVERAGE) and said == f"took {names[1]}, which are averaged"
    with pytest.raises(InputError, match=r"^checkpoint_key=nope: must be one of .*state_dict"):
        read(made(), file, "nope")


def test_an_average_alone_is_told(tmp_path: Path) -> None:
    torch.save({"model_ema": STATE}, tmp_path / "a.pt")
    averaged = torch.optim.swa_utils.AveragedModel(made(1))
    torch.save(averaged.state_dict(), tmp_path / "b.pt")
    for name, what in (("a.pt", "model_ema"), ("b.pt", "the weights")):
        found, said = read(made(), tmp_path / name)
        assert right(found) and said == f"took {what}, which are averaged"


def test_shards_are_read_by_their_index(tmp_path: Path) -> None:
    names = list(STATE)
    shards = {f"model-0000{n}-of-00002.safetensors": names[n - 1 :: 2] for n in (1, 2)}
    for shard, own in shards.items():
        safetensors.torch.save_file({name: STATE[name] for name in own}, tmp_path / shard)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {n: s for s, own in shards.items() for n in own}}))
    assert right(load_file(made(), index))
    with pytest.raises(InputError, match=r"it has no .*; it is one of several shards: give model"):
        load_file(made(), tmp_path / next(iter(shards)))
    assert Checkpoints(str(tmp_path)).files() == [index]
    (tmp_path / next(iter(shards))).unlink()
    with pytest.raises(InputError, match=r"must have its shards beside it \(.*is missing\)"):
        load_file(made(), index)
    index.write_text("{}")
    with pytest.raises(InputError, match="must hold a weight_map"):
        load_file(made(), index)


def _cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


NO_CHECKPOINTS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "text": lambda content: b"hello\n" * 100,
    "cut": _cut,
    "zeros": lambda content: bytes(1000),
    "pickled numbers": lambda content: b"\x80\x02K\x01.",
    "a memo that is not there": lambda content: b"\x80\x02h\x05.",
    "a stack that is empty": lambda content: b"\x80\x020.",
}


@pytest.mark.parametrize("name", NO_CHECKPOINTS)
def test_what_is_no_checkpoint_is_one_line(name: str, tmp_path: Path) -> None:
    file = tmp_path / "x.pt"
    torch.save(STATE, file)
    file.write_bytes(NO_CHECKPOINTS[name](file.read_bytes()))
    with pytest.raises(InputError) as error:
        load_file(made(), file)
    assert str(error.value).startswith(f"checkpoint={file}: ") and "\n" not in str(error.value)


@given(st.data())
@settings(max_examples=80, deadline=None)
def test_a_damaged_checkpoint_is_read_rightly_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: Any
) -> None:
    """Never another exception; torch's own format has no sum of its content, so numbers may be others."""
    file = tmp_path_factory.mktemp("d") / "x.pt"
    torch.save({"state_dict": STATE}, file)
    content = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(content)
    try:
        found = load_file(made(), file)
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert found.keys() == STATE.keys()


def test_a_mask_with_infinity_among_the_buffers_is_no_damage(tmp_path: Path) -> None:
    class Masked(nn.Linear):
        def __init__(self) -> None:
            super().__init__(2, 2)
            self.register_buffer("mask", torch.full((2, 2), float("-inf")).triu(1))

    network = Masked()
    torch.save(network.state_dict(), tmp_path / "x.pt")
    assert right(load_file(Masked(), tmp_path / "x.pt"), dict(network.state_dict()))
