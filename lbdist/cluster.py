"""Joins the user's Ray cluster or starts a local one, and says what it has and what it waits for."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
import secrets
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lbdist import processes
from lbdist.capacity import Capacity
from lbdist.errors import Failure, InputError, require, short
from lbdist.storage import Store

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES": str(2 << 30),
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
"""Set before Ray is imported; a user's own setting wins."""

MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 32),
}
"""Lets glibc keep what tensors free, as PyTorch does on a GPU, instead of mapping new pages at each step: a
step of C1 on a CPU takes 0.55 to 0.65 of its time."""

for _name, _value in {**ENVIRONMENT, **MEMORY}.items():
    os.environ.setdefault(_name, _value)

import ray  # noqa: E402

from lbdist import machines  # noqa: E402

ANSWER_SECONDS = 5.0
"""How long a cluster may take to answer."""

LOOK_SECONDS, SAY_SECONDS, SAY_AGAIN_SECONDS = 5.0, 20.0, 300.0
"""What waits for resources is looked up this often, and told once it has waited for so long, and again."""

PATIENCE_SECONDS = 900.0
"""How long a request may wait that the cluster, as it is, cannot meet: a lost node may come back."""

Resources = Mapping[str, float]


def address() -> str:
    """The address of the cluster that `connect` will join; empty where it will start a local one.

    Raises:
        InputError: No cluster answers at RAY_ADDRESS, it wants a token that is not found, or a local one
            could not be started in RAY_TMPDIR.
    """
    asked = os.environ.get("RAY_ADDRESS", "")
    folder = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())
    file = folder / "ray" / "ray_current_cluster"
    started = file.read_text().strip() if file.is_file() else ""  # by `ray start`
    allowed = "HOST:PORT of a running Ray cluster, or auto; unset it to start a local one"
    if asked in ("", "auto"):
        if started and _answers(started):
            return started
        require(asked == "", "RAY_ADDRESS", asked, f"{allowed} (none is running here)")
        _check_folder(folder)
        return ""
    if asked.startswith("ray://"):
        allowed += " (this is a client's address: use `ray job submit`, or run on the cluster)"
    host, _, port = asked.rpartition(":")
    require(bool(host) and port.isdigit() and "/" not in host, "RAY_ADDRESS", asked, allowed)
    require(_answers(asked), "RAY_ADDRESS", asked, f"{allowed} (nothing answers there)")
    return asked


def _answers(address: str) -> bool:
    """Whether a Ray head answers there, to the token that we have; Ray's own clients wait for much longer."""
    import grpc  # slow to import, and of no use where there is no cluster

    token = _token()
    refused = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
    with grpc.insecure_channel(address) as channel:
        ask = channel.unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive")
        try:
            ask(b"", timeout=ANSWER_SECONDS, wait_for_ready=True)
            return True
        except grpc.RpcError as error:
            if error.code() not in refused:
                return False
        mode = os.environ.setdefault("RAY_AUTH_MODE", "token")  # the cluster's, where the user names none
        wanted = f"token, which the cluster at {address} wants"
        require(mode == "token", "RAY_AUTH_MODE", mode, wanted)
        where = "in RAY_AUTH_TOKEN, in the file RAY_AUTH_TOKEN_PATH or in ~/.ray/auth_token"
        if not token:
            raise InputError(f"RAY_AUTH_TOKEN: the cluster at {address} wants its token, {where}")
        try:
            ask(b"", timeout=ANSWER_SECONDS, metadata=[("authorization", f"Bearer {token}")])
        except grpc.RpcError as error:
            if error.code() in refused:
                raise InputError(
                    f"RAY_AUTH_TOKEN: the cluster at {address} wants another token than the one {where}"
                ) from error
            return False
    ray._raylet.Config.initialize("")  # type: ignore[attr-defined] # it has read RAY_AUTH_MODE when it was imported
    return True


def _token() -> str:
    """The cluster's token, from where Ray takes it."""
    if token := os.environ.get("RAY_AUTH_TOKEN", ""):
        return token
    named = os.environ.get("RAY_AUTH_TOKEN_PATH", "")
    with contextlib.suppress(OSError, RuntimeError):  # no file; no home
        return Path(named or Path.home() / ".ray" / "auth_token").read_text().strip()
    return ""


@contextlib.contextmanager
def _own_token() -> Iterator[None]:
    """Lets a local Ray, whose servers listen on all addresses, take a token of this process's alone.

    Ray's own would lie in the home folder, where others may read it, or fail where there is none. This one is
    in the environment, which no other user reads.
    """
    given = any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    if given or os.environ.get("RAY_AUTH_MODE", "token") != "token":
        yield
        return
    os.environ["RAY_AUTH_TOKEN"] = _made_token()
    try:
        yield
    finally:
        os.environ.pop("RAY_AUTH_TOKEN", None)


@functools.cache
def _made_token() -> str:
    """The same for as long as this process lasts, since Ray keeps it."""
    return secrets.token_hex(32)


def _check_folder(folder: Path) -> None:
    """Refuses a folder in which a local Ray could not keep its sockets."""
    longest = 107 - len("/ray/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store")
    good = folder.is_dir() and os.access(folder, os.W_OK | os.X_OK) and len(str(folder)) <= longest
    require(good, "RAY_TMPDIR", folder, f"a folder to write in, of a path of at most {longest} letters")


@contextlib.contextmanager
def connect(
    say: Callable[[str], None],
    command: str,
    store: Store,
    targets: Collection[str] = (),
    asked: int | None = None,
) -> Iterator[Capacity]:
    """Ray, while the context lasts: the cluster at `address`, or a local one that ends with it.

    Args:
        say: Called with one line on what was joined or started, and on what is waited for.
        command: What the user gave, to go on with when Ray dies.
        store: The storage folder, which every node must see.
        targets: Names of classes that the workers import; those of the user's own go to them.
        asked: How many processes are wanted at once, where the cluster does not say how far it grows.

    Raises:
        InputError: The nodes have other code than the driver, or do not see the storage folder.
    """
    joined, began, go_on = address(), time.monotonic(), processes.go_on(command)
    with contextlib.nullcontext() if joined else _own_token():
        _begin(joined, targets, go_on)
        try:
            kinds = machines.inspect(store, joined) if joined else []
            capacity = _capacity(kinds, asked or 0)
            how = f"joined the cluster at {joined}:" if joined else "started a local Ray with"
            say(f"{how} {capacity} ({time.monotonic() - began:.1f} s)")
            allowed = "a cluster with CPUs: each process of lbdist takes one"
            require(capacity.cpus > 0, "RAY_ADDRESS", joined, allowed)
            with (
                _guarded(joined, go_on) if joined else processes.guarded(go_on),
                _telling(say, go_on, bool(capacity.growth)),
            ):
                yield capacity
        finally:
            with processes.closing(f"interrupted; {go_on}"):
                ray.shutdown()


def _begin(joined: str, targets: Collection[str], go_on: str) -> None:
    """Connects to the cluster at an address, or starts a local Ray where there is none.

    Raises:
        InputError: What Ray refuses.
        Failure: What keeps Ray from starting.
    """
    terminate = signal.getsignal(signal.SIGTERM)
    try:
        with (
            tempfile.TemporaryDirectory(prefix="lbdist-") as folder,
            contextlib.nullcontext() if joined else processes.guarded(go_on),
        ):
            environment = machines.own_code(targets, Path(folder)) if joined else {}
            if joined and not machines.in_a_job():
                environment["env_vars"] = {name: os.environ[name] for name in MEMORY}
            ray.init(
                address=joined or "local",
                include_dashboard=None if joined else False,  # of which nobody is told the address
                log_to_driver=False,
                logging_level=logging.CRITICAL,
                runtime_env=environment or None,
            )
    except SystemExit:  # from the handler of SIGTERM that Ray sets
        signal.signal(signal.SIGTERM, terminate)
        signal.raise_signal(signal.SIGTERM)
        raise
    except (ValueError, OSError) as error:
        raise InputError(f"ray: {short(str(error)) or type(error).__name__}") from error
    except Exception as error:  # Ray has kinds of its own
        raise Failure(f"Ray did not start: {short(str(error)) or type(error).__name__}") from error
    finally:
        signal.signal(signal.SIGTERM, terminate)  # Ray has set its own


def _capacity(kinds: Sequence[machines.Kind], asked: int) -> Capacity:
    """The connected cluster's, with what its autoscaler may add; Kubernetes does not say: what is asked."""
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    stay = [(1, resources) for resources in alive if machines.HEAD in resources]

    def total(name: str, of: Iterable[machines.Kind]) -> int:
        return sum(int(count * resources.get(name, 0)) for count, resources in of)

    if "KUBERNETES_SERVICE_HOST" in os.environ and asked:
        kinds = [(asked, {"GPU": 1} if any(node.get("GPU") for node in alive) else {"CPU": 1})]
    now = {name: total(name, ((1, resources) for resources in alive)) for name in ("CPU", "GPU")}
    most = {name: max(now[name], total(name, [*stay, *kinds])) for name in now}
    growth = f" ({now['CPU']} and {now['GPU']} now, more as they are needed)" if most != now else ""
    return Capacity(most["CPU"], most["GPU"], len(alive), growth)


@contextlib.contextmanager
def _guarded(joined: str, go_on: str) -> Iterator[None]:
    """Ends the run with a line when the cluster's head is gone, before Ray ends it without one."""
    host, _, port = joined.rpartition(":")

    def watch(over: threading.Event) -> None:
        missed = 0
        while not over.wait(LOOK_SECONDS / 2):
            try:
                socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS).close()
                missed = 0
            except OSError:
                missed += 1
            if missed == 3 and not over.is_set():
                processes.end(1, f"the cluster at {joined} no longer answers; {go_on}")

    with processes.watching(watch):
        yield


@contextlib.contextmanager
def _telling(say: Callable[[str], None], go_on: str, grows: bool) -> Iterator[None]:
    """Tells of what waits for resources, and ends a run that waits for what the cluster does not have.

    Args:
        say: Called with a line.
        go_on: How to go on, in the line that ends the run.
        grows: Whether the cluster may start nodes by itself.
    """
    context = ray.get_runtime_context()
    job, where = context.get_job_id(), context.gcs_address

    def watch(over: threading.Event) -> None:
        began: dict[str, float] = {}
        told = lacking = seen = -math.inf
        while not over.wait(LOOK_SECONDS):
            try:
                waiting = _waiting(job, where)
                free, total = ray.available_resources(), ray.cluster_resources()
            except Exception:  # the next look may get an answer
                continue
            now = time.monotonic()
            began = {name: began.get(name, now) for name in waiting}
            late = {name: need for name, need in waiting.items() if now - began[name] > SAY_SECONDS}
            late = {name: need for name, need in late.items() if not _fits(need, free)}
            if not late:
                if now - seen > 2 * SAY_SECONDS:  # Ray Train asks anew every minute
                    told = lacking = -math.inf
                continue
            if not all(_fits(need, total) for need in late.values()):
                lacking = now if lacking == -math.inf else lacking
            else:
                lacking = -math.inf
            seen, line = now, _missing(late.values(), free, total)
            if now - told > SAY_AGAIN_SECONDS:
                told = now
                say(line)
            if not grows and -math.inf < lacking < now - PATIENCE_SECONDS:
                processes.end(1, f"{line}, for {PATIENCE_SECONDS / 60:.0f} min; {go_on}")

    with processes.watching(watch):
        yield


def _waiting(job: str, where: str) -> dict[str, Resources]:
    """What a job's placement groups and actors that are not placed yet ask for, by their ids."""
    from ray.util import state  # slow to import

    mine: list[tuple[str, str, Any]] = [("creator_job_id", "=", job), ("state", "=", "PENDING")]
    found: dict[str, Resources] = {}
    for group in state.list_placement_groups(where, filters=mine, detail=True):
        need: dict[str, float] = {}
        for bundle in group.bundles or []:
            for name, amount in bundle["unit_resources"].items():
                need[name] = need.get(name, 0.0) + amount
        found[group.placement_group_id] = need
    mine = [("job_id", "=", job), ("state", "=", "PENDING_CREATION")]
    for actor in state.list_actors(where, filters=mine, detail=True):
        if not actor.placement_group_id:
            found[actor.actor_id] = actor.required_resources or {}
    return found


def _fits(need: Resources, have: Resources) -> bool:
    return all(amount <= have.get(name, 0.0) + 1e-6 for name, amount in need.items())


def _missing(needs: Iterable[Resources], free: Resources, total: Resources) -> str:
    """A line on the largest request that waits: what it asks for, and what there is."""
    need = max(needs, key=lambda need: sum(need.values()))
    parts = []
    for name, amount in need.items():
        if amount > free.get(name, 0.0):
            have, left = total.get(name, 0.0), free.get(name, 0.0)
            parts.append(f"{amount:g} {name} (the cluster has {have:g}, of which {left:g} free)")
    return f"waiting for {' and '.join(parts)}"
