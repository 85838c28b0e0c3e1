"""The Slurm script starts a cluster that carries a study, and leaves nothing behind."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from lbdist import results
from lbdist.storage import Store
from tests.support.commands import UNMEASURED, cmdline
from tests.support.machines import alive
from tests.support.repository import ROOT

STUBS = {
    "scontrol": 'echo "node-1"; echo "node-2"',
    "srun": """
for word in "$@"; do case $word in --nodelist=*) node=${word#*=};; --*) ;; *) break;; esac; shift; done
[ "$1" = hostname ] && exec echo 127.0.0.1
# each node its own temporary folder, as on machines of their own
args=(); for word in "$@"; do args+=("${word/--temp-dir=*/--temp-dir=$STUB_TMP/$node}"); done
exec "${args[@]}"
""",
}


def test_slurm_runs_a_study_on_two_nodes(s3: str, cache: str, tmp_path: Path) -> None:
    """`srun` starts real processes here: a head and a worker of one CPU; nothing is left of them.

    The study is of a procedure, in a group that takes both nodes, with all that it keeps on S3.
    """
    stubs, short = tmp_path / "stubs", Path(tempfile.gettempdir(), f"lb{os.getpid()}")
    stubs.mkdir()
    for name, script in STUBS.items():
        (stubs / name).write_text(f"#!/usr/bin/env bash\n{script}\n")
        (stubs / name).chmod(0o755)
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_A", "SLURM"))}
    environment |= {
        "PATH": f"{stubs}:{os.environ['PATH']}",
        "LBDIST_VENV": sys.prefix,
        "SLURM_JOB_NODELIST": "node-[1-2]",
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_CPUS_PER_TASK": "1",
        "STUB_TMP": str(short),
        "HOME": str(tmp_path),
        "AWS_ACCESS_KEY_ID": "key",  # on every node
        "AWS_SECRET_ACCESS_KEY": "secret",
    }
    root = s3.format("slurm")
    study = ["experiment=benchmark", "study.workers=[2]", "~study.procedures.DataLoader", cache]
    study.append(f"storage={root}")
    process = subprocess.Popen(
        ["bash", str(ROOT / "cluster" / "slurm.sh"), *UNMEASURED, *study, "epochs=2"],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path,
    )  # fmt: skip
    out, _ = process.communicate(timeout=500)
    assert process.returncode == 0, out
    assert "2 nodes with 2 CPUs and 0 GPUs" in out and "Traceback" not in out, out
    assert "Samples a second at batch 40" in out
    assert "secret" not in out and not (tmp_path / "results").exists()
    store = Store(root)
    names = store.names()
    assert "benchmark/report.html" in names and any(name.startswith("benchmark/tune/") for name in names)
    rows = results.load(store / "benchmark").query("metric == 'samples_per_second'")
    own = rows[rows["procedure"] == "lbdist"]
    assert set(own["num_workers"]) == {2} and len(own) == 2 and (rows["value"] > 0).all()
    end = time.monotonic() + 30
    # its children are nobody's by now, but all name this folder
    while left := [p for p in psutil.process_iter() if alive(p) and str(short) in " ".join(cmdline(p))]:
        assert time.monotonic() < end, left
        time.sleep(0.5)
    shutil.rmtree(short)
