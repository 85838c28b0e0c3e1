"""What the nodes of a cluster have to have beside Ray: the driver's code, and the storage folder in sight."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
from collections.abc import Collection, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from lbdist.code import modules, of_lbdist
from lbdist.errors import InputError, one_line, require
from lbdist.processes import KEYS
from lbdist.storage import Store

CHECK_SECONDS = 60.0
"""How long a node may take to say what it has; one that takes longer is passed over."""

HEAD = "node:__internal_head__"
"""A resource that Ray gives to the head alone."""

Kind = tuple[int, Mapping[str, float]]
"""How many nodes of a kind there are or may be, and the resources of one."""


@functools.cache
def code() -> str:
    """What the code on a machine is: lbdist's version and a digest of its files, and PyTorch's version."""
    torch = metadata.version("torch").partition("+")[0]  # `+cpu` on a head without GPUs is the same
    return f"lbdist {metadata.version('lbdist')} ({of_lbdist()}) with torch {torch}"


def check_code(driver: str) -> None:
    """Refuses to go on in a process whose code is not the driver's: its node may have joined late.

    Raises:
        InputError: They differ.
    """
    if code() != driver:
        raise InputError(f"node {ray.util.get_node_ip_address()} has {code()}, the driver {driver}")


def in_a_job() -> bool:
    """Whether `ray job submit` started this program, whose runtime environment is then the job's."""
    return bool(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR"))


def own_code(targets: Collection[str], folder: Path) -> dict[str, Any]:
    """Ray's runtime environment that takes the user's own modules to the workers; empty where there are none.

    Args:
        targets: Dotted names of classes.
        folder: Where to gather the modules, without what lies beside them.
    """
    found = {} if in_a_job() else modules(targets)
    for name, file in found.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, folder / name)
    return {"working_dir": str(folder)} if found else {}


def _look(root: str, probe: str, head: bool) -> dict[str, Any]:
    """What a node has to say of itself: its code, whether it sees a file of the storage folder, its plans."""
    found: dict[str, Any] = {"code": code(), "kinds": []}
    if head:
        found["kinds"] = node_kinds(ray.get_runtime_context().gcs_address)
    if probe:
        try:
            found["sees"] = Store(root).exists(probe)
        except (OSError, InputError) as error:
            found["sees"] = one_line(error)
    return found


def node_kinds(address: str) -> list[Kind]:
    """On a head: the kinds of nodes that its autoscaler may start, each with how many, and what they have.

    Args:
        address: The cluster's, since a machine may have several.
    """
    import psutil
    import yaml

    mark = "--autoscaling-config="
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        named = [word.removeprefix(mark) for word in words if word.startswith(mark)]
        ours = f"--gcs-address={address}" in words and any(word.endswith("monitor.py") for word in words)
        if ours and named:
            with contextlib.suppress(OSError, yaml.YAMLError, AttributeError):
                config = yaml.safe_load(Path(named[0]).expanduser().read_text())
                most, head = config.get("max_workers", 0), config["head_node_type"]
                kinds = config["available_node_types"].items()
                return [
                    (min(kind.get("max_workers", most), most), kind.get("resources") or {})
                    for name, kind in kinds
                    if name != head
                ]
    return []


def inspect(store: Store, joined: str) -> list[Kind]:
    """Asks each node of a joined cluster what it has.

    Returns:
        The kinds of nodes that its autoscaler may start.

    Raises:
        InputError: A node has other code, or does not see the storage folder.
    """
    alive = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
    here = ray.get_runtime_context().get_node_id()
    look = ray.remote(num_cpus=0, max_retries=0)(_look)
    others = store.local is None or len(alive) > 1
    with store.probe() if others else contextlib.nullcontext("") as probe:
        asked = {}
        for key, node in alive.items():
            there = look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(key, soft=False))
            task = there.remote(store.root, "" if key == here else probe, HEAD in node["Resources"])
            asked[task] = f"{node['NodeManagerAddress']} ({key[:8]})"  # a machine may be several
        ready, _ = ray.wait(list(asked), num_returns=len(asked), timeout=CHECK_SECONDS)
        found = {}
        for task in ready:
            try:
                found[asked[task]] = ray.get(task)
            except ray.exceptions.RayTaskError as error:  # what is sent cannot be read there
                found[asked[task]] = {"code": f"none, or of another version ({one_line(error.cause)[:80]})"}
            except ray.exceptions.RayError:  # a node that has just died
                continue
    mine, where = code(), "a folder that every node sees, such as NFS, or a URI such as s3://bucket/folder"
    if store.local is None:
        where += f", whose keys ({', '.join(KEYS)}) are in every node's environment"
    for name, said in found.items():
        same = f"a cluster of the driver's code ({mine}), but node {name} has {said['code']}"
        require(said["code"] == mine, "RAY_ADDRESS", joined, same)
        seen = said.get("sees", True)
        why = "does not" if seen is False else f"does not: {seen}"
        require(seen is True, "storage", store, f"{where} (node {name} {why})")
    kinds = [kind for said in found.values() for kind in said["kinds"]]
    more = 1 + sum(count for count, _ in kinds) > len(alive)
    hidden = more and kinds and store.local is not None and not _shared(store.local)
    own = f"{where} (it is on this node's own disk, and the cluster starts others)"
    require(not hidden, "storage", store, own)
    return kinds


def _shared(folder: Path) -> bool:
    """Whether a folder is on a file system of several machines: of a type that is not known as a disk's."""
    import psutil

    disks = ("ext", "xfs", "btrfs", "zfs", "overlay", "tmpfs", "apfs", "hfs", "f2fs", "vfat", "rootfs")
    mounts = [m for m in psutil.disk_partitions(all=True) if folder.is_relative_to(m.mountpoint)]
    kind = max(mounts, key=lambda m: len(m.mountpoint), default=None)
    return kind is not None and not kind.fstype.lower().startswith(disks)
