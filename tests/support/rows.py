"""Rows of a study that nobody ran: numbers with a mean and a standard deviation that the tests know."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pyarrow as pa

from lbdist.results import SCHEMA

# test accuracy (mean, std), φ(1e-3) (mean, std), setting, steps, gradient evaluations, seconds
STORY = {
    "SB": (72.3, 0.5, 16.3, 0.6, "", 5000, 5000, 9.4),
    "LB": (65.5, 0.7, 1290.0, 85.0, "", 400, 400, 6.1),
    "augmentation": (80.6, 0.4, 350.0, 21.0, "strength=1", 400, 400, 7.9),
    "conservative": (69.3, 0.6, 670.0, 44.0, "proximal=0.1", 1200, 1200, 12.2),
    "adversarial": (66.0, 0.8, 1100.0, 90.0, "epsilon=0.03", 400, 800, 9.8),
    "robust": (73.0, 0.5, 56.0, 4.0, "rho=0.5", 400, 800, 9.9),
    "growth": (74.1, 0.3, 15.1, 0.5, "stages=6", 1900, 1900, 7.2),
}
OTHER_SETTING = {
    "augmentation": "strength=0.5",
    "conservative": "proximal=0.001",
    "adversarial": "epsilon=0.1",
    "robust": "rho=0.2",
    "growth": "stages=3",
}


def frame(rows):
    """Rows as `lbdist.results.load` returns them."""
    return pa.Table.from_pylist(rows, schema=SCHEMA).to_pandas()


def spread(mean, std, n):
    """n values with exactly this mean and sample standard deviation."""
    if n == 1:
        return [mean]
    steps = np.arange(n) - (n - 1) / 2
    return list(mean + std * steps / steps.std(ddof=1))


def training(
    name, seed, accuracy, *, workers=1, role="confirm", setting=None, epochs=(), shift=0.0, diverged=0
):
    """The rows of one trained cell; `name` is SB, LB or a remedy of LB."""
    story = STORY.get(name, STORY["LB"])
    method, remedy = (name, "none") if name in ("SB", "LB") else ("LB", name)
    setting = story[4] if setting is None else setting
    cell = f"{role}-{name}-{setting}-{workers}-{seed}"
    split = "validation" if role == "search" else "test"
    common = {
        "experiment": "remedies", "network": "mlp", "data": "mnist1d", "cell": cell,
        "method": method, "remedy": remedy, "seed": seed, "role": role, "setting": setting,
        "global_batch_size": 32 if name == "SB" else 400, "num_workers": workers,
    }  # fmt: skip
    rows = [
        {"metric": "accuracy", "split": split, "value": accuracy},
        {"metric": "accuracy", "split": "train", "value": 100.0},
        {"metric": "loss", "split": split, "value": 1.2},
        {"metric": "steps", "value": story[5]},
        {"metric": "gradient_evaluations", "value": story[6]},
        {"metric": "seconds", "value": story[7] + seed},
        {"metric": "diverged", "value": diverged},
    ]
    for epoch in epochs:
        wiggle = math.sin(7 * seed + epoch) * 0.4
        curve = accuracy - (accuracy - 10) * math.exp(-epoch / (4 if name == "SB" else 7)) + wiggle
        at = {"epoch": epoch, "step": epoch * story[5] // 40}
        rows += [
            {**at, "metric": "accuracy", "split": split, "value": curve},
            {**at, "metric": "loss", "split": split, "value": 1 + 1 / epoch},
            {**at, "metric": "running_loss", "split": "train", "value": (1 + shift * epoch) / epoch},
        ]
    return [{**common, **row} for row in rows]


def sharpness(
    cell, phi, *, epsilon=1e-3, space="full", solver="converged", converged=True, draw=0, error=None
):
    """The row of one sharpness value of a trained cell's rows."""
    row = {key: value for key, value in cell[0].items() if key not in ("split", "value")}
    return {
        **row, "measure": "sharpness",
        "measurement": f"{row['cell']}-{epsilon}-{space}-{solver}-{draw}",
        "metric": "sharpness", "value": phi, "split": "train", "epsilon": epsilon,
        "space": space, "solver": solver, "draw": draw,
        "converged": converged, "evaluations": 11 if solver == "paper" else 60, "error": error,
    }  # fmt: skip


def study(names=tuple(STORY), *, seeds=3, epochs=(), measure=True, search=False, check=False):
    """A study's rows: confirmed cells, and if asked for curves, φ, search cells and the extra LB cell."""
    rows = []
    for name in names:
        mean, std, phi, phi_std, setting, *_ = STORY.get(name, STORY["LB"])
        sharp = spread(phi, phi_std, seeds)
        for seed, accuracy in enumerate(spread(mean, std, seeds)):
            workers = 2 if name == "LB" else 1
            cell = training(name, seed, accuracy, workers=workers, epochs=epochs)
            rows += cell
            for epsilon, space, solver in product((1e-3, 5e-4), ("full", "subspace"), ("paper", "converged")):
                value = sharp[seed] * (1 if epsilon == 1e-3 else 0.27) * (1 if space == "full" else 0.01)
                if solver == "paper":
                    value *= 0 if name == "LB" else 0.9
                if measure:
                    where = {"epsilon": epsilon, "space": space, "solver": solver}
                    rows.append(sharpness(cell, value, converged=solver == "converged", **where))
        if search and name in OTHER_SETTING:
            rows += training(name, 10_000, mean - 2, role="search", setting=setting)
            rows += training(name, 10_000, mean - 3, role="search", setting=OTHER_SETTING[name])
    if check:
        rows += training(
            "LB",
            0,
            STORY["LB"][0] - STORY["LB"][1] + 0.05,
            workers=1,
            role="workers",
            epochs=epochs,
            shift=1e-6,
        )
    return frame(rows)


def _cell(name, seed):
    return training(name, seed, 70.0)[0]["cell"]


def ways(name, seed):
    """A line and a curve from SB to a model; at LB the loss rises four times as fast as at SB."""
    steep = 4.0 if name == "LB" else 2.0
    common = {"experiment": "remedies", "network": "mlp", "data": "mnist1d", "measurement": f"way-{name}",
              "cell": _cell("SB", seed), "other_cell": _cell(name, seed), "role": "confirm"}  # fmt: skip
    rows = []
    for measure, curved in (("slice", False), ("curve", True)):
        for alpha, split in product(np.linspace(-1, 2, 13), ("train", "test")):
            loss = 0.1 + min(alpha**2, steep * (alpha - 1) ** 2) + (split == "test")
            row = {**common, "measure": measure, "curvilinear": curved, "position": alpha, "split": split}
            rows.append({**row, "metric": "loss", "value": loss})
            rows.append({**row, "metric": "accuracy", "value": 90 - 20 * loss})
    return rows


def plane(name, seed):
    """A paraboloid around a model."""
    steps = np.linspace(-1, 1, 5)
    return [
        {"experiment": "remedies", "network": "mlp", "data": "mnist1d", "measurement": f"plane-{name}",
         "cell": _cell(name, seed), "role": "confirm", "measure": "plane", "split": "train",
         "metric": "loss", "value": 0.1 + a**2 + b**2, "position": a, "position_2": b}
        for a, b in product(steps, steps)
    ]  # fmt: skip


def model(name, size):
    """What is measured at a file of somebody's own."""
    common = {"experiment": "sharpness", "network": "own", "data": "mnist1d", "cell": f"file-{name}",
              "file": name, "seed": 0}  # fmt: skip
    rows = [
        {
            **common,
            "measurement": f"fit-{name}",
            "measure": "fit",
            "metric": metric,
            "value": value,
            "split": "train",
        }
        for metric, value in (("loss", 0.1 * size), ("accuracy", 99.0 - size))
    ]
    for epsilon, space, solver, draw in product(
        (1e-3, 5e-4), ("full", "subspace"), ("paper", "converged"), (0, 1)
    ):
        if space == "full" and draw:
            continue
        rows.append(
            {**common, "measurement": f"phi-{name}", "measure": "sharpness", "metric": "sharpness",
             "value": 1e4 * epsilon * size + draw, "epsilon": epsilon, "space": space, "solver": solver,
             "draw": draw, "converged": space == "full", "evaluations": 20, "split": "train"}
        )  # fmt: skip
    return rows


def spectrum(name, seed, width):
    """A triangle of eigenvalues up to a width, of which three are above 1, counted or (LB) estimated."""
    common = {"experiment": "remedies", "network": "mlp", "data": "mnist1d", "role": "confirm",
              "cell": _cell(name, seed), "measurement": "spectrum", "measure": "spectrum"}  # fmt: skip
    rows = [{**common, "metric": metric, "value": value * width}
            for metric, value in (("lambda_max", 1.0), ("trace", 5.0), ("trace_error", 0.1))]  # fmt: skip
    rows.append({**common, "metric": "eigenvalues_above", "position": 1.0, "value": 3.0 + seed,
                 "converged": name == "SB"})  # fmt: skip
    return rows + [
        {**common, "metric": "density", "position": where, "value": max(1e-12, (1 - where / width) / width)}
        for where in np.linspace(0, width, 20)
    ]


def rescaled(name, seed):
    """A sharpness that a factor of 4 makes twice as large (unsure of it), and one that stays."""
    common = {"experiment": "remedies", "network": "mlp", "data": "mnist1d", "role": "confirm",
              "cell": _cell(name, seed), "measurement": "rescaling", "measure": "rescaling"}  # fmt: skip
    rows = []
    for factor in (1.0, 4.0):
        row = {**common, "position": factor, "converged": factor == 1.0}
        rows.append({**row, "metric": "rescaled_sharpness", "epsilon": 1e-3, "space": "full",
                     "value": 10 * factor**0.5})  # fmt: skip
        rows.append({**row, "metric": "rescaled_adaptive_sharpness_2", "value": 0.3, "converged": True})
    return rows


def choices(name, seed):
    """A minimiser measured once more under each choice: LB ten times as sharp, whatever is chosen."""
    common = {"experiment": "remedies", "network": "mlp", "data": "mnist1d", "method": name, "remedy": "none",
              "cell": _cell(name, seed), "measure": "choices", "epsilon": 1e-3, "solver": "converged",
              "converged": True}  # fmt: skip
    phi = (1 + 0.1 * seed) * (10.0 if name == "LB" else 1.0)
    rows = []
    for factor, mode in enumerate(("batch", "running"), 1):
        taken = {"measurement": f"{name}{seed}{mode}", "batch_norm": mode}
        rows.append({**common, **taken, "metric": "sharpness", "space": "full", "value": factor * phi})
        rows.append({**common, **taken, "metric": "accuracy", "split": "test", "value": 60.0 + factor})
    drawn = {"measurement": f"{name}{seed}A", "convention": "gaussian", "space": "subspace"}
    return [*rows, {**common, **drawn, "metric": "sharpness", "value": phi / 10}]


# a study of scaling

EPOCHS, SAMPLES, CRITICAL = 100, 320, 100.0


def steady(
    label: str, batch: int, seed: int, *, factor: float = 1.0, remedy: str = "none", top: float = 90.0
):
    """A run that reaches 80 % in 60 (1 + 100 / batch) steps, along a line."""
    cell, steps = f"{label}-{remedy}-{seed}", math.ceil(SAMPLES / batch)
    common = {"experiment": "scaling", "network": "mlp", "data": "mnist1d", "method": label, "remedy": remedy,
              "cell": cell, "seed": seed, "role": "confirm", "global_batch_size": batch, "num_workers": 1,
              "setting": ""}  # fmt: skip
    needed = 60 * factor * (1 + CRITICAL / batch)
    rows = []
    for epoch in range(1, EPOCHS + 1):
        at = {"epoch": epoch, "step": epoch * steps}
        score = min(top, 80.0 * epoch * steps / needed)
        rows += [{**at, "metric": "running_loss", "split": "train", "value": 1 / epoch},
                 {**at, "metric": "accuracy", "split": "test", "value": score}]  # fmt: skip
    ends = {"steps": EPOCHS * steps, "seconds": 10.0, "diverged": 0.0, "gradient_evaluations": 1.0}
    rows += [{"metric": name, "value": value} for name, value in ends.items()]
    rows.append({"metric": "accuracy", "split": "test", "value": top})
    return [{**common, **row} for row in rows]


def timing(label: str, batch: int, workers: int, seconds: float, remedy: str = "none"):
    common = {"experiment": "scaling", "network": "mlp", "data": "mnist1d", "method": label, "remedy": remedy,
              "cell": f"timing-{label}-{remedy}-{workers}", "seed": 0, "role": "timing",
              "procedure": "timing", "global_batch_size": batch, "num_workers": workers,
              "precision": "float32", "device": "a CPU"}  # fmt: skip
    waited = 0.002 if workers > 1 else 0.0
    found = {"step_seconds": seconds, "samples_per_second": batch / seconds, "disturbance": 0.004,
             "collective_calls": 7.0 * (workers > 1), "collective_bytes": 6e5 * (workers > 1),
              "peak_memory": 5e8, "device_memory": 2e10, "utilisation": 0.9,
              "all_reduce_hidden_seconds": 0.0}  # fmt: skip
    parts = dict.fromkeys(("data", "forward", "backward", "optimizer", "other"), (seconds - waited) / 5)
    found |= {f"{phase}_seconds": value for phase, value in {**parts, "all_reduce": waited}.items()}
    rows = [{"metric": name, "value": value} for name, value in found.items()]
    rows += [{"metric": "block_seconds", "block": k, "value": seconds * (0.9 + 0.1 * k)} for k in range(3)]
    return [{**common, **row} for row in rows]


def calls(workers: int):
    common = {"experiment": "scaling", "network": "mlp", "data": "mnist1d", "method": "SB", "remedy": "none",
              "cell": f"calls-{workers}", "seed": 0, "role": "collectives", "procedure": "collectives",
              "global_batch_size": 32, "num_workers": workers, "metric": "collective_seconds"}  # fmt: skip
    sizes = [2**k for k in range(8, 24, 2)]
    return [{**common, "bytes": size, "block": 0, "value": 1e-4 + 1e-9 * size} for size in sizes]


SIZES = {"SB": 32, "batch 64": 64, "batch 128": 128, "LB": 320}


def scaled(**changes):
    """Rows of a study: a step takes 2 ms and 10 us a sample, on two workers half of that and 3 ms more."""
    rows = [
        r for name, batch in SIZES.items() for seed in range(3) for r in steady(name, batch, seed, **changes)
    ]
    for workers in (1, 2):
        for name, batch in SIZES.items():
            alone = 0.002 + 1e-5 * batch / workers
            rows += timing(name, batch, workers, alone if workers == 1 else alone + 0.003)
    return rows + calls(2)


# sweeps


def sweep(batches, *, seeds=3, phi=True):
    """Runs at batches, a mapping from the batch to (accuracy, std, φ)."""
    rows = []
    for batch, (mean, std, value) in batches.items():
        for seed, accuracy in enumerate(spread(mean, std, seeds)):
            cell = [
                {**row, "global_batch_size": batch, "cell": f"{batch}-{seed}", "method": f"batch {batch}"}
                for row in training("LB", seed, accuracy, epochs=(1, 2))
            ]
            rows += cell + ([sharpness(cell, value)] if phi else [])
    return rows


def warm(epochs=(2, 5)):
    """SB 72, LB 65, and LB begun at SB's epochs, three points better each."""
    rows = []
    for seed in range(3):
        groups = [("SB", None, 72.0, 10.0), ("LB", None, 65.0, 400.0)]
        groups += [("LB", epoch, 65.0 + 3 * place, 400.0 / 2**place) for place, epoch in enumerate(epochs, 1)]
        for name, epoch, mean, phi in groups:
            curve = epochs if name == "SB" else ()
            cell = training(name, seed, spread(mean, 0.4, 3)[seed], epochs=curve)
            begun = {"origin_cell": f"sb-{seed}", "origin_epoch": epoch} if epoch else {}
            cell = [{**row, **begun, "cell": f"{row['cell']}-{epoch}"} for row in cell]
            rows += [*cell, sharpness(cell, phi)]
    return rows
