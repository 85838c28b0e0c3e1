"""Precision and memory format: what is computed, what stays float32, what is chosen and kept."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from torch import Tensor, nn

from lbdist import networks
from lbdist.config.build import plain
from lbdist.config.compose import compose, config_root
from lbdist.config.schema import PRECISIONS
from lbdist.remedies.base import Batch
from lbdist.storage import Store
from lbdist.training import rehearsal
from lbdist.training.batches import Workers
from lbdist.training.learner import Learner
from lbdist.training.loop import train
from lbdist.training.precision import EXACT, Arithmetic, candidates, choose, native
from tests.support.cells import CONVOLUTIONAL, SGD, Normed, make_cell, train_in_group
from tests.support.samples import images, signals

BF16, LAST = Arithmetic("bfloat16"), Arithmetic("float32", channels_last=True)
SHAPES = {"mlp": (40,), "f1": (784,), "f2": (360,), "c1": (3, 32, 32), "c2": (3, 32, 32),
          "c3": (3, 32, 32), "c4": (3, 32, 32)}  # fmt: skip
# c3 and c4 are c1 and c2 with more outputs
NAMES = sorted({path.stem for path in (config_root() / "network").glob("*.yaml")} - {"c3", "c4"})


def learner(node: dict, arithmetic: Arithmetic, dtype: torch.dtype = torch.float32) -> Learner:
    network = networks.make(node, 0).to(dtype)
    return Learner(network, torch.optim.SGD, Workers(), arithmetic=arithmetic)


def batch(shape: tuple[int, ...], count: int = 8, dtype: torch.dtype = torch.float32) -> Batch:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.rand(count, *shape, generator=generator, dtype=dtype)
    labels = torch.arange(count) % 4
    return Batch(inputs, labels, torch.arange(count), count, 0, 0, 0)


def shipped(name: str) -> dict:
    config = compose([f"network={name}"])
    config.derived.update({"inputs": 40, "channels": 3, "classes": 10, "outputs": 10})
    config.derived.inputs = int(torch.Size(SHAPES[name]).numel())
    OmegaConf.resolve(config)
    return plain(config.network)


@pytest.mark.parametrize("name", NAMES)
def test_every_network_trains_in_bfloat16_with_all_that_lasts_in_float32(name: str) -> None:
    losses, gradients, averages = [], [], []
    for arithmetic in (EXACT, BF16):
        made = learner(shipped(name), arithmetic)
        made.gradient(batch(SHAPES[name]))
        losses.append(float(made.loss))
        gradients.append(made.g.clone())
        kinds = {t.dtype for t in (made.x, made.g, *made.network.buffers()) if t.is_floating_point()}
        assert kinds == {torch.float32}
        means = [norm.running_mean for norm in made.norms]
        averages.append(torch.cat([mean for mean in means if mean is not None]))
        made.update()
        assert {
            v.dtype for s in made.optimizer.state.values() for v in s.values() if isinstance(v, Tensor)
        } <= {torch.float32}
    assert losses[0] != losses[1] == pytest.approx(losses[0], rel=3e-2)
    cosine = torch.nn.functional.cosine_similarity(*gradients, dim=0)
    assert cosine > 0.8  # deep nets of eight samples amplify the rounding
    torch.testing.assert_close(averages[1], averages[0], rtol=0.05, atol=0.02)


def test_the_memory_format_changes_no_more_than_the_order_of_sums() -> None:
    cell = make_cell(network=CONVOLUTIONAL, optimizer=SGD)
    results = [train(cell, images(), dtype=torch.float64, arithmetic=a) for a in (EXACT, LAST)]
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-9, atol=1e-9)
    assert {row["memory_format"] for row in results[1][0]} == {"channels_last"}


def test_workers_agree_in_bfloat16_to_its_rounding() -> None:
    """Batch-norm statistics are summed over workers in float32, so their number moves only roundings."""
    cells = [make_cell(optimizer=SGD, epochs=1, precision="bfloat16"),
             make_cell(network=CONVOLUTIONAL, optimizer=SGD, epochs=1, ghost_batch_size=8)]  # fmt: skip
    work = list(zip(cells, (signals(), images()), strict=True))
    for (_, x), (cell, data) in zip(train_in_group(2, work, torch.float32, BF16), work, strict=True):
        _, alone = train(cell, data, arithmetic=BF16)
        exact = train(cell, data)[1]
        assert (x - alone).norm() <= 0.02 * alone.norm()
        assert not torch.equal(alone, exact) and (alone - exact).norm() <= 0.05 * exact.norm()


@pytest.mark.parametrize("track", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("ghost", [None, 8])
def test_batch_norm_of_every_kind_keeps_its_statistics_in_float32(
    track: bool, affine: bool, ghost: int | None
) -> None:
    made = []
    for arithmetic in (EXACT, BF16):
        torch.manual_seed(0)
        network = Normed(affine=affine, track=track)
        made.append(Learner(network, torch.optim.SGD, Workers(), ghost, arithmetic=arithmetic))
        made[-1].gradient(batch((12,), 25))
    assert torch.nn.functional.cosine_similarity(made[0].g, made[1].g, dim=0) > 0.99
    for found, expected in zip(made[1].network.buffers(), made[0].network.buffers(), strict=True):
        assert found.dtype == expected.dtype
        torch.testing.assert_close(found, expected, rtol=0.02, atol=0.01)


def test_what_is_reported_is_evaluated_in_float32() -> None:
    data = signals()
    made = learner(make_cell().network, BF16)
    split = torch.tensor(data.test.inputs), torch.tensor(data.test.labels)
    same = learner(make_cell().network, EXACT)
    assert made.evaluate(split) == same.evaluate(split)


@pytest.mark.usefixtures("every_epoch")
def test_a_resumed_run_keeps_its_precision(tmp_path) -> None:
    cell, data, store = make_cell(epochs=4), signals(), Store(tmp_path)
    _, whole = train(cell, data, arithmetic=BF16)

    def stop(metrics: dict[str, float]) -> None:
        if metrics["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(cell, data, arithmetic=BF16, store=store, report=stop)
    rows, x = train(cell, data, arithmetic=EXACT, store=store)
    assert torch.equal(x, whole)
    ends = {row["precision"] for row in rows if row.get("split") and row.get("epoch") is None}
    assert {row["precision"] for row in rows if row.get("epoch")} == {"bfloat16"} and ends == {"float32"}


def test_tf32_is_allowed_only_while_it_is_asked_for() -> None:
    def flags() -> tuple[bool, bool]:
        return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32

    before = flags()
    with pytest.raises(ZeroDivisionError), Arithmetic("tf32").applied():
        assert flags() == (True, True)
        with EXACT.applied():
            assert flags() == (False, False)
        assert flags() == (True, True)
        1 / 0  # noqa: B018
    assert flags() == before


class Particular(nn.Module):
    """Bears neither bfloat16 nor channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4 * 36, 4)

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_autocast_enabled("cpu"):
            raise RuntimeError("no kernel")
        return self.head(self.body(x).view(len(x), -1))


def test_speeds_are_of_what_the_network_bears(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = [make_cell(network={"_target_": f"{__name__}.Particular"}, global_batch_size=b) for b in (8, 16)]
    before = torch.get_num_threads()
    monkeypatch.setattr(rehearsal, "native", lambda gpu: {"float32", "bfloat16"})  # whatever CPU this is
    assert set(rehearsal.speeds(cells, images(), "cpu", threads=1)[0]) == {EXACT}
    assert torch.get_num_threads() == before
    assert rehearsal.speeds([make_cell(precision="bfloat16")], signals(), "cpu")[0] == {}
    found, _ = rehearsal.speeds([make_cell(network=CONVOLUTIONAL)], images(), "cpu")
    both = candidates(["auto"], images=True, there=["float32", "bfloat16"])
    assert set(found) == set(both) and min(found.values()) > 0


def test_auto_is_what_the_cpu_has_instructions_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """An emulated bfloat16 is not measured, so that no run can choose it; one that is asked for is taken."""
    flags = set(Path("/proc/cpuinfo").read_text().split()) & {"avx512_bf16", "amx_bf16", "bf16", "svebf16"}
    told = hasattr(torch.cpu, "get_capabilities")
    assert native(gpu=False) == ({"float32", "bfloat16"} if flags and told else {"float32"})
    assert torch.cuda.is_available() or native(gpu=True) == {"float32"}
    monkeypatch.setattr(rehearsal, "native", lambda gpu: {"float32"})
    assert rehearsal.speeds([make_cell()], signals(), "cpu") == ({}, {"float32"})
    convolutional = make_cell(network=CONVOLUTIONAL)
    asked = [convolutional, replace(convolutional, precision="bfloat16")]
    for cells, measured in ((asked[:1], {"float32"}), (asked, {"float32", "bfloat16"})):
        seconds, may = rehearsal.speeds(cells, images(), "cpu")
        assert {how.precision for how in seconds} == measured and may == {"float32"}


@given(
    seconds=st.dictionaries(
        st.sampled_from(candidates(["auto"], images=True, there=PRECISIONS)), st.floats(1e-3, 10), min_size=1
    ),
    asked=st.sampled_from(["auto", *PRECISIONS]),
)
def test_another_precision_is_chosen_only_if_it_is_clearly_faster(
    seconds: dict[Arithmetic, float], asked: str
) -> None:
    found = choose(seconds, asked)
    base = Arithmetic("float32" if asked == "auto" else asked)
    assert asked in ("auto", found.precision)
    if found != base:
        assert seconds[found] <= 0.9 * seconds.get(base, 0)
    if base in seconds:
        fit = {other: time for other, time in seconds.items() if asked in ("auto", other.precision)}
        assert all(time > 0.9 * seconds[found] for other, time in fit.items() if other != found)


def test_a_schedule_sets_the_rate_of_each_step(monkeypatch) -> None:
    rates: list[float] = []

    class Watched(torch.optim.SGD):
        def step(self, closure=None):
            rates.append(self.param_groups[0]["lr"])
            return super().step(closure)

    monkeypatch.setattr(f"{__name__}.Watched", Watched, raising=False)
    cell = make_cell(optimizer={"_target_": f"{__name__}.Watched", "lr": 0.1, "momentum": 0.9}, epochs=4,
                     schedule={"warmup": 1.0, "decay": "cosine"})  # fmt: skip
    data = signals()  # three steps an epoch
    _, whole = train(cell, data)
    assert len(rates) == 12
    assert rates[:3] == pytest.approx([0.1 / 3, 0.2 / 3, 0.1])
    assert rates[3] == pytest.approx(0.1) and all(a > b for a, b in pairwise(rates[3:]))
    assert rates[-1] == pytest.approx(0.05 * (1 + torch.cos(torch.tensor(torch.pi * 8 / 9)).item()))
    plain_cell = make_cell(optimizer=SGD, epochs=4)
    assert not torch.equal(train(plain_cell, data)[1], whole)


def test_a_schedule_survives_a_restart(tmp_path) -> None:
    cell = make_cell(epochs=4, schedule={"warmup": 1.0, "decay": "step", "milestones": [0.5], "gamma": 0.1})
    data, store = signals(), Store(tmp_path)

    def stop(metrics: dict[str, float]) -> None:
        if metrics["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(cell, data, store=store, report=stop)
    assert torch.equal(train(cell, data, store=store)[1], train(cell, data)[1])


def test_a_run_ends_when_its_loss_has_ceased_to_improve(tmp_path) -> None:
    def ran(**changes) -> list[float]:
        rows, _ = train(make_cell(epochs=60, test_points=1, **changes), data, dtype=torch.float64)
        last = max(r["epoch"] for r in rows if r.get("epoch"))
        scored = [(r["epoch"], r["split"]) for r in rows if r["metric"] == "accuracy" and r.get("epoch")]
        assert sorted(scored) == [(last, "test"), (last, "train")]
        return [row["value"] for row in rows if row["metric"] == "running_loss"]

    data = signals()
    losses, all_of_them = ran(patience=2), ran()
    assert len(all_of_them) == 60 > len(losses) and losses == all_of_them[: len(losses)]
    lowest, since = losses[0], 0
    for number, loss in enumerate(losses[1:], 2):
        improved = loss < lowest * (1 - 1e-3)
        lowest, since = (loss, 0) if improved else (lowest, since + 1)
        assert (since == 2) == (number == len(losses))
    assert len(ran(patience=1, optimizer={**SGD, "lr": 0.0}, global_batch_size=130)) == 2  # it never improves
