"""Every wrong input is one line and exit status 2; every YAML composes; the help knows them all."""

import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray
import yaml
from omegaconf import MISSING, OmegaConf

from lbdist import compacted, results
from lbdist.config import choices
from lbdist.config import compose as configuration
from lbdist.config.build import build
from lbdist.config.compose import SEVERAL, compose, config_root, options
from lbdist.config.schema import RESERVED, Config, RateSchedule, Search, check
from lbdist.errors import InputError
from lbdist.networks import make, sample_flops
from lbdist.remedies.base import Remedy
from lbdist.run import main
from lbdist.tuning.search_space import settings

ROOT = config_root()
GROUPS = ("experiment", "scale", "network", "data", "loss", "remedy", "measure", "optimizer")
CHOICES = [(group, path.stem) for group in GROUPS for path in sorted((ROOT / group).glob("*.yaml"))]

# the command line, and what its one line of complaint must hold
BAD = [
    # what a rule, a study or a measure needs
    ("experiment=gap lr_rule=sqrt optimizer.lr=abc", "optimizer.lr=abc: must be a number with lr_rule=sqrt"),
    ("experiment=gap lr_rule=adam optimizer.betas=[a,b]", "optimizer.betas=['a', 'b']: must be numbers with"),
    ("experiment=gap lr_rule=adam optimizer.betas=0.9", "optimizer.betas=0.9: must be numbers with"),
    ("experiment=gap lr_rule=adam optimizer.eps=x", "optimizer.eps=x: must be a number with"),
    ("experiment=paper study.parts=[paper]", "study.parts=['paper']: must be"),
    ("experiment=paper study.parts=[gap,[3]]", "study.parts=['gap', [3]]: must be a list of experiments"),
    ("experiment=paper ~study.parts", "~study.parts: must be left out: paper is made of its study.parts"),
    ("experiment=paper scale.fixed_epochs=0", "scale.fixed_epochs=0: must be above 0"),
    ("experiment=scaling study.targets=[101]", "study.targets=[101.0]: must be test scores of at most 100"),
    (
        "experiment=gap measure=[noise_scale] measure.noise_scale.group=5000",
        "measure.noise_scale.group=5000: must be at most half of the 4000 training samples",
    ),
    (
        "experiment=benchmark study.procedures.lbdist.precision=float99",
        "study.procedures.lbdist.precision=float99: must be auto, float32, tf32 or bfloat16",
    ),
    ("experiment=gap retrain=all", "retrain=all: must be null or changed"),
    # choices that are not there
    ("experiment=nope", "experiment=nope: must be one of advise, batch_size"),
    ("experiment=null", "experiment=null: must be one of"),
    ("network=nope", "network=nope: must be one of c1"),
    ("network=null", "network=null: must be one of"),
    ("network=3", "network=3: must be one of"),
    ("data=parquet data.image=x", "data.image=x: there is no key data.image; did you mean data.inputs?"),
    ("data=nope", "data=nope: must be one of arrays, cifar10"),
    ("optimizer=nope", "optimizer=nope: must be one of adagrad, adam"),
    ("remedy=nope", "remedy=nope: must be one or more of adversarial"),
    ("remedy=[none,nope]", "remedy=[none,nope]: must be one or more of"),
    ("remedy=[]", "remedy=[]: must be one or more of"),
    ("remedy=null", "remedy=null: must be one or more of"),
    ("experiment=gap,remedies", "experiment=gap,remedies: must be one value"),
    # keys that are not there
    ("epoch=3", "epoch=3: there is no key epoch; did you mean epochs?"),
    (
        "measure.sharpness.epsilon=1",
        "key measure.sharpness.epsilon; did you mean measure.sharpness.epsilons?",
    ),
    ("search.seed=2", "there is no key search.seed; did you mean search.seeds?"),
    ("+extra=1", "extra: there is no such key"),
    ("+measure.sharpness.extra=1", "measure.sharpness.extra=1: no such key; allowed: batch_norm"),
    ("measure.lambda_max.tolerance=1", "lambda_max is not among those of the study; add it to measure=[...]"),
    ("+study.extra=1", "study.extra=1: no such key; allowed: check_precision, check_workers"),
    ("checkpoint=x.pt", "checkpoint=x.pt: must be null in remedies: experiment=checkpoints takes it"),
    ("experiment=gap study.equal_loss=0", "study.equal_loss=0.0: must be null, or from 1 to 1,000 times"),
    ("experiment=paper measure=[fit]", "measure=[fit]: must be left out, since each part has its own"),
    ("experiment=paper study.parts=[nope]", "experiment=nope: must be one of advise, batch_size"),
    ("experiment=paper study.parts=[]", "study.parts=[]: must be a list of experiments"),
    ("scale=huge", "scale=huge: must be one of paper, quick"),
    ("data=fsdd", "data.root=None: must be the folder with recordings/"),
    ("study.check_workers=0", "study.check_workers=0: must be null or at least 1"),
    ("study._target_=builtins.dict", "study._target_=builtins.dict: must be a lbdist.studies.base.Study"),
    ("measure=nope", "measure=nope: must be one or more of adaptive"),
    ("loss=nope", "loss=nope: must be one of binary_cross_entropy"),
    ("loss=mean_squared_error", "data: the train split's labels must be finite floating-point numbers"),
    ("loss._target_=builtins.dict", "loss._target_=builtins.dict: must be a lbdist.losses.Loss"),
    ("combinations=[robust]", "combinations=[robust]: must be a list"),
    ("combinations=[[robust,sam]]", "combinations=['robust', 'sam']: must be of remedies of the study"),
    ("combinations=[[robust,adversarial]]", "combinations=[robust,adversarial]: must not combine robust and"),
    ("+remedy.robust.cell.seed=1", "remedy.robust.cell={'seed': 1}: must be a group of optimizer, epochs"),
    ("remedy=[robust] +remedy.robust.cell.optimizer.lr=-1", "lr=-1"),
    ("+remedy.robust.cell.epochs=x", "remedy.robust.cell.epochs=x: must be a whole number of at least 1"),
    ("+remedy.robust.cell.optimizer=sgd", "remedy.robust.cell.optimizer=sgd: must be a group of keys"),
    (
        "+remedy.robust.cell.global_batch_size=9999",
        "remedy.robust.cell.global_batch_size=9999: must be at most",
    ),
    (
        "+remedy.robust.cell.micro_batch_size=9 ghost_batch_size=2",
        "micro_batch_size=9: must be a multiple of",
    ),
    ("experiment=batch_size study.batches=[5000]", "study.batches=5000: must be a batch of at most 4000"),
    (
        "experiment=warm_start study.epochs=[99]",
        "study.epochs=[99]: must be all, or a list of epochs from 1 to 20",
    ),
    ("name=cells", "name=cells: must be up to 100 letters"),
    ("remedy.robust.radius=1", "there is no key remedy.robust.radius"),
    ("+remedy.robust.radius=1", "remedy.robust.radius=1: no such key; allowed: ascent_steps, norm, rho"),
    ("remedy.sam.rho=1", "there is no key remedy.sam.rho"),
    ("experiment=gap remedy.robust.rho=1", "robust is not among those of the study; add it to remedy=[...]"),
    ("+remedy.robust.search.radius=[1]", "remedy.robust.radius=1: no such key"),
    ("optimizer.momentum=0.9", "there is no key optimizer.momentum"),
    ("+optimizer.momentum=0.9", "unexpected keyword argument 'momentum'"),
    ("network.depth=3", "there is no key network.depth"),
    ("+network.depth=3", "unexpected keyword argument 'depth'"),
    ("data.samples=3", "there is no key data.samples"),
    (
        "+data.samples=3",
        "data.samples=3: no such key; allowed: mean, root, seed, std, test_samples, train_samples",
    ),
    ("~seeds", "seeds: must be given"),
    ("~nothing", "~nothing: "),
    ("~remedy", "remedy=???: must be given"),
    ("evaluations=3", "evaluations=3: there is no key evaluations; did you mean test_points?"),
    ("replicas=2", "replicas=2: there is no key replicas; did you mean seeds_at_once?"),
    ("scale.sampels=3", "scale.sampels=3: there is no key scale.sampels"),
    ("scale.samples=few", "scale.samples=few: must be null or at least 2"),
    ("scale.name=[1]", "scale.name=[1]: must be a name"),
    ("experiment=batch_size scale.fixed_epochs=abc", "scale.fixed_epochs=abc: "),
    ("~scale.name", "scale.name=None: must be a name"),
    # types
    ("seeds=abc", "seeds=abc: must be a whole number"),
    ("seeds=", "seeds=: must be a whole number"),
    ("epochs=1.5", "epochs=1.5: must be a whole number"),
    ("dry_run=maybe", "dry_run=maybe: must be true or false"),
    ("large_batch=many", "large_batch=many: must be a number"),
    ("measure.sharpness=3", "measure.sharpness=3: must be a group of keys"),
    ("measure.sharpness.epsilons=0.1", "measure.sharpness.epsilons=0.1: must be a list"),
    ("measure.sharpness.epsilons=[abc]", "measure.sharpness.epsilons=['abc']: must be a number"),
    ("measure.sharpness.solvers=paper", "measure.sharpness.solvers=paper: must be a list"),
    ("storage=null", "storage=null: must be given"),
    ("remedy.robust.rho=abc", "remedy.robust.rho=abc: must be a number"),
    ("remedy.robust=null", "remedy.robust=None: must be a group of keys"),
    ("remedy.robust.search=3", "remedy.robust.search=3: "),
    ("data.train_samples=abc", "data.train_samples=abc: must be a whole number"),
    ("optimizer.lr=abc", "lr=abc"),
    ("seeds=${no_such_key}", "seeds=${no_such_key}: "),
    # values
    ("epochs=0", "epochs=0: must be from 1 to 1,000,000"),
    ("seeds=0", "seeds=0: must be from 1 to 10,000"),
    ("small_batch=0", "small_batch=0: must be at least 1"),
    ("test_points=0", "test_points=0: must be from 1 to"),
    ("retries=-1", "retries=-1: must be from 0 to 10,000"),
    ("max_concurrent=0", "max_concurrent=0: must be null or at least 1"),
    ("name=..", "name=..: must be up to 100 letters"),
    ("name=a/b", "name=a/b: must be up to 100 letters"),
    ("large_batch=0", "large_batch=0.0: must be"),
    ("large_batch=1.5", "large_batch=1.5: must be"),
    ("large_batch=nan", "large_batch=nan: must be"),
    ("large_batch=1e9", "large_batch=1000000000: must be a batch of at most 3200"),
    ("small_batch=400", "small_batch=400: must be a batch of at most 399, less than the large batch"),
    ("num_workers=0", "num_workers=0: must be auto or a whole number from 1 to 100,000"),
    ("num_workers=two", "num_workers=two: must be auto or"),
    ("num_workers=null", "num_workers=None: must be auto or"),
    ("num_workers=true", "num_workers=True: must be auto or"),
    ("ghost_batch_size=0", "ghost_batch_size=0: must be null or at least 1"),
    ("micro_batch_size=16", "micro_batch_size=16: batch normalisation over the global batch"),
    ("micro_batch_size=24 ghost_batch_size=16", "micro_batch_size=24: must be a multiple of"),
    ("search.seeds=0", "search.seeds=0: must be from 1 to 10,000"),
    ("search.samples=0", "search.samples=0: must be from 1 to 10,000"),
    ("search.validation_fraction=2", "search.validation_fraction=2.0: must be between 0 and 1"),
    ("search.epochs=0", "search.epochs=0.0: must be a share"),
    ("measure.sharpness.solvers=[x]", "measure.sharpness.solvers=['x']: must be among paper, converged"),
    (
        "network.widths=[4] measure.sharpness.subspace_dimension=999",
        "measure.sharpness.subspace_dimension=999: must be at most",
    ),
    ("remedy.robust.rho=-1", "remedy.robust.rho=-1.0: must be 0 or more"),
    ("remedy.robust.norm=3", "remedy.robust.norm=3: must be 2 or inf"),
    ("remedy.growth.rule=x", "remedy.growth.rule=x: must be schedule or norm_test"),
    ("remedy.robust.search.rho=[-1]", "remedy.robust.rho=-1.0: must be 0 or more"),
    ("remedy.robust.search.rho=[]", "remedy.robust.search={'rho': []}: must be lists of different values"),
    ("remedy.robust.search.rho=[1,1]", "remedy.robust.search={'rho': [1, 1]}: must be lists of different"),
    ("optimizer.lr=-1", "lr=-1"),
    ("storage=nope://bucket", "storage=nope://bucket: must be a folder, or a URI"),
    ("storage=/dev/null", "storage=/dev/null: must be a folder to write in"),
    # what is instantiated
    ("network._target_=no.such.Class", "network._target_=no.such.Class: must be the dotted path of a class"),
    ("network._target_=torch.nn.Nope", "network._target_=torch.nn.Nope: must be the dotted path"),
    ("network._target_=builtins.dict", "network._target_=builtins.dict: must be a torch.nn"),
    ("remedy.none._target_=builtins.dict", "remedy.none._target_=builtins.dict: must be a lbdist.remedies"),
    ("data._target_=builtins.dict", "data._target_=builtins.dict: must be a lbdist.data"),
    ("network=c1", "network: does not take samples of shape (40,)"),
    ("network.classes=3", "network: gives outputs of shape (2, 3) for 2 samples; the loss takes (2, 10)"),
    # data
    ("data=parquet", "data.root=None: must be the folder"),
    ("data=parquet data.root=nowhere", "data.root=nowhere: must be a folder that is there"),
    ("data=parquet data.root=.", "data.root='.': must hold train.parquet"),
    ("data=cifar10 data.download=false data.root=.", "cifar10 is not there and data.download=false"),
    ("data.train_samples=0", "data.train_samples=0: must be"),
    ("data.test_samples=4001", "data.test_samples=4001: must be at most 4000"),
    ("data.seed=-1", "data.seed=-1: must be"),
    # counts beyond reason, and numbers that are none
    ("seeds=1e20", "seeds=1e20: must be a whole number"),
    ("seeds=100000000000000000000", "seeds=100000000000000000000: must be"),
    ("seeds=1000000000", "seeds=1000000000: must be from 1 to 10,000"),
    ("epochs=999999999999", "epochs=999999999999: must be from 1 to 1,000,000"),
    ("search.seeds=999999999", "search.seeds=999999999: must be from 1 to 10,000"),
    ("search.samples=999999999", "search.samples=999999999: must be from 1 to 10,000"),
    ("test_points=9999999999", "test_points=9999999999: must be from 1 to 1,000,000"),
    ("retries=999999999", "retries=999999999: must be from 0 to 10,000"),
    ("num_workers=999999999", "num_workers=999999999: must be auto or"),
    ("measure.sharpness.draws=999999999", "measure.sharpness.draws=999999999: must be from 1 to 10,000"),
    ("measure.sharpness.starts=999999999", "measure.sharpness.starts=999999999: must be from 1 to 10,000"),
    (
        "measure.sharpness.epsilons=[1e300]",
        "measure.sharpness.epsilons=[1e+300]: must be all from 1e-7 to 1e3",
    ),
    ("measure.sharpness.epsilons=[1e-300]", "measure.sharpness.epsilons=[1e-300]: must be all from 1e-7"),
    (
        "measure.sharpness.epsilons=[[1e-3]]",
        "measure.sharpness.epsilons=[[0.001]]: must be a list of single values",
    ),
    ("measure.sharpness.spaces=[[full]]", "measure.sharpness.spaces=[['full']]: must be a list of"),
    ("measure.sharpness.epsilons=[nan]", "measure.sharpness.epsilons=[nan]: must be finite"),
    ("optimizer.lr=inf", "optimizer.lr=inf: must be finite"),
    ("optimizer.lr=nan", "optimizer.lr=nan: must be finite"),
    ("optimizer=sgd optimizer.momentum=nan", "optimizer.momentum=nan: must be finite"),
    ("optimizer.betas=[0.9,inf]", "optimizer.betas=[0.9, inf]: must be finite"),
    ("+optimizer.maximize=true", "optimizer.maximize=True: must be false"),
    ("remedy.robust.rho=inf", "remedy.robust.rho=inf: must be finite"),
    ("remedy.robust.search.rho=[nan]", "remedy.robust.search.rho=[nan]: must be finite"),
    ("small_batch=99999999999999999999", "small_batch=99999999999999999999: must be"),
    (f"name={'a' * 300}", "must be up to 100 letters"),
    ("study.check_workers=auto", "study.check_workers=auto: must be"),
    ("precision=half", "precision=half: must be auto, float32, tf32 or bfloat16"),
    ("seeds_at_once=0", "seeds_at_once=0: must be auto or a whole number from 1 to 1,000"),
    ("precision=tf32", "precision=tf32: must be float32, bfloat16 or auto, since there is no GPU"),
    ("study.check_precision=half", "study.check_precision=half: must be null, float32, tf32 or bfloat16"),
    ("lr_rule=cubic", "lr_rule=cubic: must be none, linear, sqrt or adam"),
    ("lr_rule=adam", "optimizer.betas=[0.9, 0.999]: must be above 0.92 for a batch 12.5 times 32"),
    ("lr_rule=adam optimizer=sgd", "lr_rule=adam: must be none, or optimizer.betas given"),
    ("schedule.decay=exp", "schedule.decay=exp: must be constant, cosine or step"),
    ("schedule.warmup=20", "schedule.warmup=20.0: must be from 0 to less than the 20 epochs"),
    ("schedule.milestones=[2]", "schedule.milestones=[2.0]: must be one or more parts of the run"),
    ("schedule.gamma=-1", "schedule.gamma=-1.0: must be from 0 to 1"),
    ("patience=0", "patience=0: must be null or at least 1"),
    ("experiment=warm_start patience=3", "patience=3: must be null: a run must reach the epochs"),
    ("regroup_seconds=0", "regroup_seconds=0.0: must be above 0"),
    ("experiment=scaling study.workers=[2]", "study.workers=[2]: must be a list with 1"),
    ("experiment=scaling study.timing.least=0", "study.timing.least=0: must be from 1 to 1,000"),
    ("experiment=scaling study.collectives.sizes=[]", "study.collectives.sizes=[]: must be one or more"),
    ("experiment=scaling study.batches=[0]", "study.batches=[0]: must be samples, a share"),
    ("experiment=scaling study.epochs=[99]", "study.epochs=[99]: must be all, or a list of epochs from 1"),
    ("experiment=scaling study.branch_rule=cubic", "study.branch_rule=cubic: must be none, linear, sqrt"),
    ("experiment=scaling study.branch_length=2", "study.branch_length=2.0: must be above 0 and up to 1"),
    ("experiment=scaling study.tolerance=-1", "study.tolerance=-1.0: must be 0 or more"),
    (
        "experiment=scaling +study.interconnects.own={seconds:1}",
        "study.interconnects.own={'seconds': 1}: must",
    ),
    ("experiment=scaling patience=3", "patience=3: must be null: a run must reach the epochs"),
    ("experiment=benchmark study.workers=[9999]", "study.workers=9999: must be at most"),
    ("study.check_workers=9999", "study.check_workers=9999: must be at most"),
    ("num_workers=9999", "num_workers=9999: must be at most"),
    ("num_workers=9999 dry_run=true", "num_workers=9999: must be at most"),
    ("storage=/dev/null dry_run=true", "storage=/dev/null: must be a folder to write in"),
    ("storage=/dev/null/deep dry_run=true", "storage=/dev/null/deep: must be a folder to write in"),
    ("storage=", "storage=: must be"),
    ("search.validation_fraction=0.0001", "search.validation_fraction=0.0001: must be at least 0.00025"),
    ("network.init=x", "network.init=x: must be glorot or keep"),
    # syntax
    ("epochs", "epochs: must be a study (--help lists them), KEY=VALUE"),
    ("--verbose", "--verbose: must be a study (--help lists them), KEY=VALUE"),
    ("=3", "=3: must be KEY=VALUE"),
    ("seeds==3", "seeds==3: must be KEY=VALUE"),
    ("seeds=[", "seeds=[: must be KEY=VALUE"),
    ("seeds='3", "seeds='3: must be KEY=VALUE"),
    ("--cfg", "--cfg: must be followed by job"),
    ("--cfg all", "--cfg: must be followed by job"),
    ("--config-dir", "--config-dir: must be followed by a folder"),
    ("--config-dir nowhere", "--config-dir nowhere: must be a folder that is there"),
]


@pytest.fixture
def workplace(tmp_path: Path, mnist1d_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder; mnist1d comes from the session's cache."""
    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(mnist1d_cache))
    return folder


@pytest.mark.parametrize(("arguments", "complaint"), BAD, ids=[arguments for arguments, _ in BAD])
def test_wrong_input(
    arguments: str, complaint: str, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments.split(" ")) == 2
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    assert err.startswith("lbdist: ") and err.endswith("\n") and err.count("\n") == 1, err
    assert complaint in err
    assert list(workplace.iterdir()) == []
    assert not ray.is_initialized()


# what people's own networks and optimisers are, and what the line must hold
OWN = {
    "network": {
        "frozen": "network: has no trainable parameters",
        "Nothing": "network: has no trainable parameters",
        "lazy": "weight is lazy",
        "mixed": "network: its parameters are bfloat16 and float32; must be float32",
        "double": "network: its parameters are float64; must be float32",
        "Pair": "network: gives a tuple in training mode, not a tensor",
        "Named": "network: gives a dict in evaluation mode, not a tensor",
        "Failing": "network: ValueError in training: only in evaluation",
        "Noisy": "network: draws random numbers of its own in training mode",
        "PrivateNoise": "network: draws random numbers of its own in training mode",
        "Attention": "network: attention draws random numbers of its own in training mode",
        "Rectified": "network: draws random numbers of its own in training mode",
        "sequence_first": "a dropout is given",
        "activated": "is a Activated, a batch norm with a forward pass of its own",
        "OwnNorm": "depends on the others in its batch",
        "instance_norm": "is an instance norm with running averages",
        "Loaded": "layer.weight is the same for every seed",
        "spectral": "a hook computes it",
        "dropout2d": "Dropout2d is not supported",
        "shared_memory": "share memory but are two parameters",
        "Straight": "its gradient is not that of its loss",
        "Forgetful": "a pass in training mode changes what it gives in evaluation mode",
    },
    "optimizer": {
        "torch.optim.LBFGS": "optimizer: TypeError in training: LBFGS.step() missing 1 required",
        "torch.optim.SparseAdam": "optimizer: RuntimeError in training: SparseAdam does not",
        "builtins.dict": "optimizer._target_=builtins.dict: must be a torch.optim",
    },
}


@pytest.mark.parametrize(
    ("group", "target", "complaint"),
    [(g, name, line) for g, found in OWN.items() for name, line in found.items()],
)
def test_what_people_bring_is_refused_before_anything_starts(
    group: str,
    target: str,
    complaint: str,
    workplace: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / group).mkdir()
    path = target if "." in target else f"tests.support.odd_inputs.{target}"
    (tmp_path / group / "mine.yaml").write_text(f"# mine\n_target_: {path}\nname: mine\n")
    assert main(["experiment=gap", "--config-dir", str(tmp_path), f"{group}=mine"]) == 2
    _, err = capsys.readouterr()
    assert err.startswith("lbdist: ") and err.count("\n") == 1 and complaint in err, err
    assert list(workplace.iterdir()) == [] and not ray.is_initialized()


@pytest.mark.parametrize("arguments", ["seeds=abc", "large_batch=1e9"])
def test_wrong_input_of_the_command(arguments: str, workplace: Path) -> None:
    command = [sys.executable, "-m", "lbdist.run", arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"lbdist: {arguments.split('=')[0]}=") and done.stderr.count("\n") == 1
    assert list(workplace.iterdir()) == []


# RAY_ADDRESS and RAY_TMPDIR, and what the line must hold
ENVIRONMENT = [
    (
        "RAY_ADDRESS",
        "auto",
        "must be HOST:PORT of a running Ray cluster, or auto; unset it to start a local one (none",
    ),
    ("RAY_ADDRESS", "word", "RAY_ADDRESS=word: must be HOST:PORT"),
    ("RAY_ADDRESS", "127.0.0.1", "RAY_ADDRESS=127.0.0.1: must be HOST:PORT"),
    ("RAY_ADDRESS", "10.255.255.1:6379", "nothing answers there"),
    ("RAY_ADDRESS", "no.such.host.invalid:6379", "nothing answers there"),
    ("RAY_ADDRESS", "ray://127.0.0.1:10001", "this is a client's address"),
    ("RAY_ADDRESS", "http://127.0.0.1:8265", "must be HOST:PORT"),
    ("RAY_TMPDIR", "/nowhere", "RAY_TMPDIR=/nowhere: must be a folder to write in"),
    ("RAY_TMPDIR", "/dev/null", "RAY_TMPDIR=/dev/null: must be a folder to write in"),
    ("RAY_TMPDIR", "LONG", "of a path of at most"),
]


@pytest.mark.parametrize(("name", "value", "complaint"), ENVIRONMENT)
def test_a_wrong_environment(
    name: str,
    value: str,
    complaint: str,
    workplace: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))  # where no cluster was started
    if value == "LONG":
        folder = tmp_path / ("long" * 20)
        folder.mkdir()
        value = str(folder)
    monkeypatch.setenv(name, value)
    began = time.monotonic()
    assert main(["experiment=gap"]) == 2
    assert time.monotonic() - began < 15  # of which the answer may take ten
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err and err.startswith(f"lbdist: {name}=") and err.count("\n") == 1, err
    assert complaint in err
    assert list(workplace.iterdir()) == []


def test_damaged_data(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("train", "test"):
        (workplace / f"{name}.parquet").write_bytes(b"PAR1 and then nothing")
    assert main(["data=parquet", "data.root=."]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.startswith(f"lbdist: data.root: {workplace / 'train.parquet'} cannot be read as Parquet: ")
    assert len(list(workplace.iterdir())) == 2


def test_wrong_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # a YAML of the user's own that cannot be read
    (tmp_path / "config.yaml").write_text((ROOT / "config.yaml").read_text())
    for group in GROUPS:
        (tmp_path / group).mkdir()
        for path in (ROOT / group).iterdir():
            (tmp_path / group / path.name).write_text(path.read_text())
    (tmp_path / "experiment" / "gap.yaml").write_text("# @package _global_\nname: [\n")
    (tmp_path / "experiment" / "typo.yaml").write_text("# @package _global_\nname: typo\nseed: 3\n")
    for module in (configuration, choices):
        monkeypatch.setattr(module, "config_root", lambda: tmp_path)
    with pytest.raises(InputError, match=r"gap\.yaml"):
        compose(["experiment=gap"])
    with pytest.raises(InputError, match="'seed'"):
        compose(["experiment=typo"])
    compose(["experiment=remedies"])


def test_help_names_every_choice(capsys: pytest.CaptureFixture[str]) -> None:
    for flag in ("--help", "-h"):
        assert main([flag, "seeds=abc"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    described = {line.split()[0] for line in out.splitlines() if len(line.split()) > 2 and line[:2] == "  "}
    assert {name for _, name in CHOICES} <= described


def test_a_folder_of_the_users_own_joins(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "own"
    (own / "remedy").mkdir(parents=True)
    (own / "remedy" / "halved.yaml").write_text(
        "# half of every gradient\nhalved:\n  _target_: my_remedies.Halved\n  share: 0.5\n"
    )
    (own / "my_remedies.py").write_text(
        "from dataclasses import dataclass\n"
        "from lbdist.errors import require\n"
        "from lbdist.remedies.base import Remedy\n"
        "@dataclass\n"
        "class Halved(Remedy):\n"
        "    share: float = 0.5\n"
        "    def __post_init__(self):\n"
        "        require(self.share > 0, 'share', self.share, 'above 0')\n"
    )
    monkeypatch.syspath_prepend(str(own))
    for words in (["--config-dir", str(own)], [f"--config-dir={own}"]):
        assert main([*words, "--help"]) == 0
        assert "half of every gradient" in capsys.readouterr().out
        assert main([*words, "experiment=gap", "remedy=[none,halved,robust]", "dry_run=true"]) == 0
        assert "LB + halved" in capsys.readouterr().out
        assert main([*words, "remedy=halved", "remedy.halved.share=0"]) == 2
        assert capsys.readouterr().err == "lbdist: remedy.halved.share=0.0: must be above 0\n"
    assert main(["remedy=halved"]) == 2
    assert "remedy=halved: must be one or more of" in capsys.readouterr().err
    assert list(workplace.iterdir()) == []


def test_help_names_keys_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    keys = capsys.readouterr().out.split("main keys\n")[1].split("\n\n")[0].splitlines()
    config = compose()
    assert len(keys) >= 10
    for line in keys:
        key = line.split()[0]
        section, _, name = key.rpartition(".")
        assert name in (OmegaConf.select(config, section) if section else config), key


def test_cfg_job(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ["experiment=gap", "seeds=7", "optimizer.lr=0.02", "measure.sharpness.epsilons=[0.1]"]
    shown = []
    for arguments in (["--cfg", "job", *overrides], [*overrides, "--cfg", "job"]):
        assert main(arguments) == 0
        out, err = capsys.readouterr()
        assert err == ""
        shown.append(yaml.safe_load(out))
    assert shown[0] == shown[1]
    assert (shown[0]["name"], shown[0]["seeds"], shown[0]["optimizer"]["lr"]) == ("gap", 7, 0.02)
    assert shown[0]["measure"]["sharpness"]["epsilons"] == [0.1]
    assert set(shown[0]) == {f.name for f in dataclasses.fields(Config)}
    assert list(workplace.iterdir()) == []


@pytest.mark.parametrize(("group", "name"), CHOICES)
def test_choice_composes_and_is_described(group: str, name: str) -> None:
    config = compose([f"{group}={name}"])
    check(config)
    assert len(options(group)[name]) > 10, (
        f"experiments/{group}/{name}.yaml: no word on it in its first lines"
    )
    node = config[group][name] if group in SEVERAL else config.get(group)
    if group == "experiment":
        assert config.name == name
    elif group in SEVERAL:
        assert node._target_.startswith({"remedy": "lbdist.remedies.", "measure": "lbdist.sharpness."}[group])
    else:
        assert node.name == name


@pytest.mark.parametrize("name", options("remedy"))
def test_remedy_builds_with_every_setting(name: str) -> None:
    config = compose([f"remedy={name}"])
    node = OmegaConf.to_container(config, resolve=False)["remedy"][name]
    node = OmegaConf.to_container(OmegaConf.create({**node, "small_batch": 32}), resolve=True)
    del node["small_batch"]
    for setting in settings(node.get("search"), 2, f"remedy.{name}"):
        remedy = build({**node, **setting}, f"remedy.{name}", kind=Remedy)
        assert all(getattr(remedy, key) == value for key, value in setting.items())


@pytest.mark.parametrize("name", options("network"))
def test_network_builds_for_its_data(name: str) -> None:
    import numpy as np

    config = compose([f"network={name}"])
    shape, classes = {
        "mlp": ((40,), 10),
        "f1": ((1, 28, 28), 10),
        "c3": ((3, 32, 32), 100),
        "c4": ((3, 32, 32), 100),
    }.get(name, ((3, 32, 32), 10))
    config.derived.inputs, config.derived.channels = int(np.prod(shape)), shape[0]
    config.derived.classes = config.derived.outputs = classes
    OmegaConf.resolve(config)
    assert sample_flops(make(config.network), np.zeros((2, *shape), "f4"), (classes,)) > 0


def test_every_key_has_its_default_and_its_word() -> None:
    lines = (ROOT / "config.yaml").read_text()
    given = {**yaml.safe_load(lines), **yaml.safe_load((ROOT / "scale" / "quick.yaml").read_text())}
    missing = {f.name for f in dataclasses.fields(Config)} - set(given)
    chosen = {"name", "study", "network", "data", "loss", "optimizer", "remedy"}
    assert missing == {*chosen, "derived"}
    for group, schema in (("search", Search), ("schedule", RateSchedule)):
        assert set(given[group]) == {f.name for f in dataclasses.fields(schema)}
    # each default is stated once
    groups = ("derived", "search", "schedule")
    for schema in (Config, Search, RateSchedule):
        assert {f.default for f in dataclasses.fields(schema) if f.name not in groups} == {MISSING}
    assert set(RESERVED) == {results.CELLS, results.MEASUREMENTS, compacted.NAME}


@pytest.mark.parametrize(
    "key",
    [
        f"{prefix}{f.name}"
        for prefix, schema in (("", Config), ("search.", Search), ("schedule.", RateSchedule))
        for f in dataclasses.fields(schema)
        if f.name
        not in ("name", "storage", "study", "network", "data", "loss", "optimizer", "remedy", "measure")
        and f.name not in ("checkpoint", "checkpoint_key")  # any text may be a file
    ],
)
def test_schema_types_every_key(key: str) -> None:
    if key in (
        "num_workers",
        "precision",
        "seeds_at_once",
        "lr_rule",
        "schedule.decay",
        "executor",
        "output",
        "retrain",
    ):  # what a type does not tell
        with pytest.raises(InputError, match=f"^{key}=abc: must be "):
            check(compose([f"{key}=abc"]))
    else:
        with pytest.raises(InputError, match=f"^{key}=abc: must be "):
            compose([f"{key}=abc"])


@pytest.mark.parametrize(
    "path",
    ["~/data", "/a b/c=d", "../x:y", "./a,b", "s3://k:s@bucket/a?scheme=http&endpoint_override=h:1", "/x/$y"],
)
def test_a_path_or_a_uri_needs_no_quotes(path: str) -> None:
    assert compose([f"storage={path}"]).storage == path
    assert compose([f"data.root={path}"]).data.root == path
    assert compose([f"storage='{path}'"]).storage == path


def test_composing_leaves_nothing_behind() -> None:
    assert compose(["seeds=9"]).seeds == 9
    assert compose().seeds != 9
    assert compose(["remedy=robust"]).remedy.keys() == {"robust"}
    assert compose(["remedy=[growth,robust]"]).remedy.keys() == {"growth", "robust"}
    assert os.environ.get("HYDRA_FULL_ERROR") is None


@pytest.mark.parametrize(
    "overrides",
    [
        ["experiment=gap", "remedy=robust", "remedy.robust.rho=0.3"],  # each of which needs the other
        ["experiment=paper", "measure.sharpness.draws=1", "study.batches=[100]"],  # keys of parts alone
    ],
    ids=lambda overrides: overrides[0],
)
def test_what_the_published_protocol_has_more_is_told_whatever_is_overridden(overrides: list[str]) -> None:
    overrides = [*overrides, "scale=quick"]
    config, _ = configuration.compose_parts(overrides)
    assert "small_batch 32 instead of 256" in configuration.left_out(config, overrides)
