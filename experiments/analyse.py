# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
# ---

# %% [markdown]
# # A Tune study, taken apart
#
# `python -m lbdist.run experiment=remedies` has written `results/remedies`. What is in it: a row per measured
# value, Ray Tune's own trials, and each trained model. Opened in Jupyter (`jupytext --to ipynb
# experiments/analyse.py`, or an editor that knows `# %%`), this is a notebook.

# %%
import matplotlib.pyplot as plt
import safetensors.torch

import lbdist
from lbdist.tuning.trial import grid

STUDY = "results/remedies"
rows = lbdist.results.load(STUDY)
board = lbdist.leaderboard(rows)
board.filter(regex="%$|points$|φ\\([^)]*\\)$|^n$").round(2)

# %% [markdown]
# ## What the search saw
#
# Each trial of Tune is a row, and each hyperparameter a column. The score is that of a validation split; what was
# chosen by it was then confirmed over fresh seeds, on the test set, in rows of their own.

# %%
trials = grid(STUDY).get_dataframe()
search = trials[trials["config/role"] == "search"]
search = search.sort_values(["config/remedy", "validation_accuracy"], ascending=[True, False])
search[["config/remedy", "config/setting", "validation_accuracy"]]

# %%
figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
axes.plot(search["validation_accuracy"], search["config/remedy"] + " " + search["config/setting"], "o")
axes.set_xlabel("validation accuracy (%)")
axes.grid(axis="y", alpha=0.4)
figure.savefig("search.png")

# %% [markdown]
# ## Accuracy against sharpness
#
# `sharpness` has rows for every box ε, space and solver: to average over them means nothing. The table's number
# is that of the full space, run to convergence, at ε 1e-3.

# %%
confirmed = rows[rows["role"].isin(["confirm", "equal_loss"])]
phi = confirmed.query(
    "metric == 'sharpness' and epsilon == 1e-3 and space == 'full' and solver == 'converged' and epoch.isna()"
).set_index("cell")["value"]
score = confirmed.query("metric == 'accuracy' and split == 'test' and epoch.isna() and measurement.isna()")
runs = score.assign(phi=score["cell"].map(phi)).dropna(subset="phi")
figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
for (method, remedy), own in runs.groupby(["method", "remedy"]):
    axes.plot(own["phi"], own["value"], "o", label=method if remedy == "none" else f"{method} + {remedy}")
axes.set(xscale="log", xlabel="φ(1e-3), lower is flatter", ylabel="test accuracy (%)")
axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
figure.savefig("sharpness.png")
runs.groupby(["method", "remedy"])[["value", "phi"]].agg(["mean", "std"]).round(1)

# %% [markdown]
# ## During training

# %%
curve = confirmed.query("metric == 'accuracy' and split == 'test' and epoch.notna() and measurement.isna()")
figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
for (method, remedy), own in curve.groupby(["method", "remedy"]):
    mean = own.groupby("epoch")["value"].mean()
    axes.plot(mean.index, mean, label=method if remedy == "none" else f"{method} + {remedy}")
axes.set(xlabel="epoch", ylabel="test accuracy (%)")
axes.legend(frameon=False, ncols=2)
figure.savefig("curves.png")

# %% [markdown]
# ## A trained model
#
# A plain state dict: `network.load_state_dict(state)`, and `lbdist.sharpness.box_sharpness` measures it.

# %%
cell = runs.query("method == 'LB' and remedy == 'none'")["cell"].iloc[0]
state = safetensors.torch.load_file(f"{STUDY}/../cells/{cell}/model.safetensors")
{name: tuple(tensor.shape) for name, tensor in state.items()}
