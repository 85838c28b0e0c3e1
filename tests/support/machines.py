"""Machines that `ray up` can log into, on this one: each has a network, processes, a home and an sshd.

The file system is shared otherwise, as NFS would be. Root, `ip` and Debian's packages are needed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

PACKAGES = {"sshd": ("openssh-server", "libwrap0"), "rsync": ("rsync", "libpopt0", "libxxhash0")}


class Missing(Exception):
    """What these machines take is not here."""


def run(*command: str, **options) -> str:  # type: ignore[no-untyped-def]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, **options)
    except subprocess.TimeoutExpired as error:
        raise Missing(f"{' '.join(command[:4])}: no end within a minute") from error
    if done.returncode:
        raise Missing(f"{' '.join(command[:4])}: {done.stderr.strip()[-300:]}")
    return done.stdout


def programs(folder: Path) -> dict[str, str]:
    """Paths of sshd and rsync: the system's, else unpacked from Debian's packages, not installed."""
    found = {}
    for name, packages in PACKAGES.items():
        path = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
        if path is None:
            folder.mkdir(parents=True, exist_ok=True)
            if shutil.which("apt-get") is None:
                raise Missing(f"{name} is not installed, and there is no apt-get")
            for package in packages:
                run("apt-get", "download", package, cwd=folder)
            for file in folder.glob("*.deb"):
                run("dpkg-deb", "-x", str(file), str(folder))
            path = next(str(p) for p in folder.rglob(name) if p.parent.name in ("bin", "sbin"))
        found[name] = path
    return found


@contextlib.contextmanager
def machines(folder: Path, count: int) -> Iterator[list[str]]:
    """The addresses of `count` machines that take the key `folder/key`, while the context lasts.

    Raises:
        Missing: Something is not here.
    """
    if os.geteuid():
        raise Missing("it takes root")
    for name in ("ip", "unshare", "ssh", "ssh-keygen"):
        if shutil.which(name) is None:
            raise Missing(f"{name} is not installed")
    found = programs(folder / "debian")
    libraries = ":".join({str(p.parent) for p in (folder / "debian").rglob("*.so.*")})
    tag = f"lbd{os.getpid() % 100_000}"
    subnet = f"10.{100 + os.getpid() % 100}.{os.getpid() // 100 % 250}"
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "key"))
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "host"))
    users = [line for line in Path("/etc/passwd").read_text().splitlines() if not line.startswith("root:")]
    tools = folder / "bin"
    tools.mkdir()
    (tools / "rsync").write_text(f'#!/bin/sh\nLD_LIBRARY_PATH={libraries} exec {found["rsync"]} "$@"\n')
    (tools / "rsync").chmod(0o755)
    processes: list[subprocess.Popen[bytes]] = []
    made: list[str] = []
    Path("/tmp/ray").mkdir(exist_ok=True)
    Path("/run/sshd").mkdir(exist_ok=True)
    try:
        run("ip", "link", "add", tag, "type", "bridge")
        run("ip", "addr", "add", f"{subnet}.254/24", "dev", tag)
        run("ip", "link", "set", tag, "up")
        for place in range(1, count + 1):
            name, home = f"{tag}-{place}", folder / f"machine-{place}"
            (home / "root" / ".ssh").mkdir(parents=True)
            (home / "root" / "venv").symlink_to(sys.prefix)
            (home / "root" / ".profile").write_text(f'export PATH="{tools}:$PATH"\n')
            own = [f"root:x:0:0:root:{home}/root:/bin/bash", "sshd:x:994:65534::/run/sshd:/usr/sbin/nologin"]
            (home / "passwd").write_text("\n".join([*own, *users, ""]))
            keys = home / "authorized_keys"
            shutil.copy(folder / "key.pub", keys)
            run("ip", "netns", "add", name)
            made.append(name)
            run("ip", "link", "add", f"{name}v", "type", "veth", "peer", "name", "eth0", "netns", name)
            run("ip", "link", "set", f"{name}v", "master", tag, "up")
            inside = ("ip", "-n", name)
            run(*inside, "addr", "add", f"{subnet}.{place}/24", "dev", "eth0")
            run(*inside, "link", "set", "eth0", "up")
            run(*inside, "link", "set", "lo", "up")
            run(*inside, "route", "add", "default", "via", f"{subnet}.254")
            (home / "sshd_config").write_text(
                f"Port 22\nListenAddress {subnet}.{place}\nHostKey {folder}/host\nPidFile none\nUsePAM no\n"
                f"AuthorizedKeysFile {keys}\nStrictModes no\nPermitRootLogin prohibit-password\n"
                f"SetEnv PATH={tools}:/usr/local/bin:/usr/bin:/bin\n"
            )
            script = (
                "mount -t tmpfs tmpfs /tmp/ray"
                f" && mount -t tmpfs tmpfs /dev/shm && mount --bind {home}/passwd /etc/passwd"
                " && mount --bind /dev/null /etc/resolv.conf"  # who asks for a name need not wait for none
                f" && hostname machine-{place} && cd / && exec {found['sshd']} -D -e -f {home}/sshd_config"
            )
            apart = ["--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child", "--mount-proc"]
            command = ["ip", "netns", "exec", name, "unshare", *apart, "bash", "-c", script]
            with (home / "sshd.log").open("w") as log:
                environment = {**os.environ, "HOME": f"{home}/root", "LD_LIBRARY_PATH": libraries}
                processes.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment))
        addresses = [f"{subnet}.{place}" for place in range(1, count + 1)]
        for place, address in enumerate(addresses, 1):
            wait_for_ssh(folder, address, folder / f"machine-{place}" / "sshd.log")
        yield addresses
    finally:
        below = [p for process in processes for p in psutil.Process(process.pid).children(recursive=True)]
        for process in processes:
            process.kill()
            process.wait(20)
        end = time.monotonic() + 20
        while any(alive(p) for p in below) and time.monotonic() < end:
            time.sleep(0.1)
        for name in made:
            subprocess.run(["ip", "netns", "del", name], timeout=20)
        subprocess.run(["ip", "link", "del", tag], timeout=20)


def alive(process: psutil.Process) -> bool:
    """Whether a process runs; one that nobody has buried does not."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def ssh(folder: Path, address: str, command: str) -> subprocess.CompletedProcess[str]:
    """Runs a command on a machine."""
    options = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR"]
    given = [word for option in options for word in ("-o", option)]
    words = ["ssh", *given, "-i", str(folder / "key"), f"root@{address}", command]
    return subprocess.run(words, capture_output=True, text=True, timeout=180)


def wait_for_ssh(folder: Path, address: str, log: Path) -> None:
    end = time.monotonic() + 20
    while (done := ssh(folder, address, "true")).returncode:
        if time.monotonic() > end:
            raise Missing(f"no SSH to {address}: {done.stderr.strip()} {log.read_text()[-300:]}")
        time.sleep(0.3)
