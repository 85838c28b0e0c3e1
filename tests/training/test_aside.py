"""What is written aside: whole, in order, no more often than it may cost, and its errors are not lost."""

from __future__ import annotations

import math
import threading
import time
from pathlib import Path

import pytest
import torch

from lbdist import networks
from lbdist.data.base import on_device
from lbdist.storage import Store
from lbdist.training import checkpoint
from lbdist.training.aside import Aside, copied
from lbdist.training.loop import train
from lbdist.training.precision import EXACT, Arithmetic
from tests.support.cells import make_cell
from tests.support.samples import signals

BF16 = Arithmetic("bfloat16")


def test_writes_keep_their_order_and_training_goes_on_meanwhile() -> None:
    aside, written, go = Aside(math.inf), list[int](), threading.Event()

    def slow() -> None:
        assert go.wait(20)
        written.append(0)

    aside.write(slow)
    assert written == []  # this thread was not held up
    go.set()
    for number in range(1, 5):
        aside.write(lambda number=number: written.append(number))
    aside.finish()
    assert written == list(range(5))


def test_what_is_offered_meanwhile_is_left_out() -> None:
    aside, written, go = Aside(share=1e9), list[str](), threading.Event()

    def slow(content: str) -> None:
        assert go.wait(20)
        written.append(content)

    time.sleep(0.01)
    for name in "abc":
        aside.offer(1, lambda name=name: name, slow)
    go.set()
    aside.finish()
    assert written == ["a"]


def test_it_costs_no_more_than_its_share() -> None:
    """Of a second in which a write that takes 5 ms is offered all the time, a tenth."""
    aside, spent = Aside(share=0.1), list[float]()

    def write(content: None) -> None:
        begun = time.monotonic()
        time.sleep(5e-3)
        spent.append(time.monotonic() - begun)

    begun = time.monotonic()
    with aside:
        while time.monotonic() < begun + 1:
            aside.offer(0, lambda: None, write)
            time.sleep(1e-4)
    # the last may take longer than the one before it promised
    assert spent and sum(spent[:-1]) <= 0.1 * (time.monotonic() - begun) + max(spent)


def test_a_large_file_waits_for_its_time() -> None:
    aside, taken = Aside(), list[int]()
    aside.offer(2 * 10**11, lambda: taken.append(1), lambda content: None)  # 1,000 s, by the guess
    assert taken == []


@pytest.mark.parametrize("after", ["write", "offer", "finish"])
def test_an_error_comes_out_at_the_next_call(after: str) -> None:
    aside = Aside(math.inf)

    def full() -> None:
        raise OSError(28, "No space left on device")

    aside.write(full)
    with pytest.raises(OSError, match="No space"):
        if after == "write":
            aside.write(lambda: None)
        elif after == "offer":
            aside.offer(0, lambda: None, lambda content: None)
        else:
            aside.finish()
    aside.finish()  # once


def test_a_copy_is_of_its_moment() -> None:
    x = torch.arange(3.0)
    state = {"x": x, "parts": [x[:2], (x, 1)], "view": x[1:], "other": None, "name": "a"}
    taken = copied(state)
    x += 1
    assert taken["x"].tolist() == [0, 1, 2] and taken["parts"][1][0].tolist() == [0, 1, 2]
    assert taken["view"].tolist() == [1, 2] and taken["parts"][0].tolist() == [0, 1]
    assert (taken["other"], taken["name"], taken["parts"][1][1]) == (None, "a", 1)


@pytest.mark.usefixtures("every_epoch")
def test_what_is_resumed_is_the_end_of_an_epoch_although_the_next_was_under_way(tmp_path: Path) -> None:
    """Whenever it is stopped, the file holds one whole epoch's state, bit by bit."""
    cell, data, store = make_cell(epochs=9), signals(), Store(tmp_path)
    _, whole = train(cell, data)
    own, seen = store / f"cells/{cell.id}", dict[int, torch.Tensor]()

    def look(metrics: dict[str, float]) -> None:
        if own.exists(checkpoint.RESUME):
            state = checkpoint.load(own)
            seen[state["course"]["epoch"]] = state["learner"]["x"]

    train(cell, data, store=store, report=look)
    for epoch, x in seen.items():
        _, expected = train(make_cell(epochs=epoch), data)
        assert torch.equal(x, expected)
    assert len(seen) > 3
    assert torch.equal(train(cell, data, store=store)[1], whole)  # from the last of them


@pytest.mark.usefixtures("every_epoch")
def test_what_could_not_be_written_ends_the_run(tmp_path: Path) -> None:
    """Its folder leads to where nobody can make a file."""
    cell, store = make_cell(epochs=4), Store(tmp_path)
    (tmp_path / "cells").symlink_to("/proc/version")
    with pytest.raises(OSError):
        train(cell, signals(), store=store)


def test_the_curve_is_of_the_runs_precision_and_its_end_of_float32(tmp_path: Path) -> None:
    """Both by their definitions: the network passed through once more in each."""
    cell, data, store = make_cell(epochs=4, test_points=4), signals(), Store(tmp_path)
    rows, _ = train(cell, data, arithmetic=BF16, store=store)
    last = {(r["split"], r["metric"]): r["value"] for r in rows if r.get("epoch") == 4}
    end = {(r["split"], r["metric"]): r["value"] for r in rows if r.get("split") and r.get("epoch") is None}
    exact = {r["precision"] for r in rows if r.get("split") and r.get("epoch") is None}
    curve = {r["precision"] for r in rows if r.get("epoch")}
    assert (exact, curve) == ({"float32"}, {"bfloat16"})
    network = networks.make(cell.network, cell.seed)
    network.load_state_dict(checkpoint.load_model(store / f"cells/{cell.id}", "model.safetensors"))
    network.eval()
    for split, samples in (("train", data.train), ("test", data.test)):
        inputs, labels = on_device(samples, "cpu")
        with torch.no_grad():
            loss = torch.nn.functional.cross_entropy(network(inputs.float()), labels)
            with torch.autocast("cpu", torch.bfloat16):
                outputs = network(inputs.float())
            reduced = torch.nn.functional.cross_entropy(outputs.float(), labels)
        assert end[split, "loss"] == pytest.approx(float(loss), rel=1e-5)
        assert last[split, "loss"] == pytest.approx(float(reduced), rel=1e-4)
        assert abs(end[split, "loss"] / last[split, "loss"] - 1) > 1e-6  # they can be told apart
    alone, _ = train(cell, data, arithmetic=EXACT)
    ends = {(r["split"], r["metric"]): r["value"] for r in alone if r.get("split") and r.get("epoch") is None}
    points = {(r["split"], r["metric"]): r["value"] for r in alone if r.get("epoch") == 4}
    assert all(points[key] == value for key, value in ends.items())  # evaluated once


def test_a_target_is_reached_in_float32() -> None:
    """A point of the curve alone would end a run whose reported loss is above what it was to come to."""
    data, base = signals(), make_cell(epochs=12, test_points=12)
    rows, _ = train(base, data, arithmetic=BF16)
    losses = [r["value"] for r in rows if r["metric"] == "loss" and r["split"] == "train" and r.get("epoch")]
    for target in losses[2:8]:
        found, _ = train(make_cell(epochs=12, test_points=12, target_loss=target), data, arithmetic=BF16)
        end = next(
            r["value"]
            for r in found
            if r["metric"] == "loss" and r["split"] == "train" and not r.get("epoch")
        )
        epochs = sum(r["metric"] == "running_loss" for r in found)
        assert end <= target or epochs == 12
