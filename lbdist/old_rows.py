"""Rows as earlier versions wrote them, with the columns and names of today's."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

OLD_COLUMNS = ("stage", "replicas")
"""Columns that there are no longer."""

METRICS = {"images_per_second": "samples_per_second"}


def renewed(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of an earlier version, whose `stage` told less than `role` and `rule` do.

    Example:
        >>> old = {"stage": "check", "method": "LB, sqrt", "origin_epoch": 3, "metric": "loss"}
        >>> renewed(old) == {"role": "branch", "rule": "sqrt", "method": "LB", "origin_epoch": 3,
        ...                  "metric": "loss"}
        True
    """
    row = dict(row)
    if "replicas" in row:
        row["seeds_at_once"] = row.pop("replicas")
    metric = row["metric"] = METRICS.get(row["metric"], row["metric"])
    options = json.loads(row.get("options") or "{}")
    row |= {key: options[key] for key in ("device", "curvilinear", "convention") if key in options}
    if set(options) == {"device"}:
        row["options"] = None
    if row.get("measurement") and row.get("split"):
        row["metric"] = metric.removeprefix(f"{row['split']}_")
    if metric in ("block_seconds", "collective_seconds"):
        row |= {"block": row.get("draw"), "draw": None}
    if metric == "collective_seconds":
        row |= {"bytes": int(row["position"]), "position": None}
    return _with_role(row)


def _with_role(row: dict[str, Any]) -> dict[str, Any]:
    stage, method = row.pop("stage", None), row.get("method")
    if stage is None:
        return row
    known, _, rule = (method or "").partition(", ")
    row |= {"role": stage, "rule": rule or None}
    if stage == "check":
        begun, workers = row.get("origin_epoch") is not None, row.get("num_workers")
        checked = "branch" if begun else "workers" if workers != 1 else "precision"
        row["role"] = row.get("procedure") or checked
    elif method == "LB to SB's loss":
        row["role"], known = "equal_loss", "LB"
    elif method == "advised":
        row["role"], known = "advised", f"batch {row['global_batch_size']}"
    elif row.get("procedure"):
        row["role"] = "benchmark"
    elif method is not None and not re.fullmatch(r"SB|LB|batch \d+", method):
        return {**row, "role": None, "rule": None, "file": method, "method": None}
    if method is not None:
        row["method"] = known
    return row
