"""The one command: help, composition, exit status.

python -m lbdist.run experiment=remedies
"""

from __future__ import annotations

import os
import signal
import sys

if __name__ == "__main__" or sys.argv[0].endswith(("/lbdist", "/lbdist/__main__.py")):
    # until `main` holds the signals, which takes some imports
    signal.signal(
        signal.SIGINT, lambda number, frame: os._exit(os.write(2, b"lbdist: interrupted\n") and 130)
    )

import contextlib
import difflib
import gc
import io
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import NoReturn

from lbdist import processes
from lbdist.errors import Failure, InputError, one_line, warn
from lbdist.letters import HANDLER

_USAGE = """\
usage: lbdist [STUDY] [KEY=VALUE ...] [-m] [--config-dir DIR] [--help | --version | --cfg job]

How large a batch can a model take, what does it cost, and which remedy buys it back?
`lbdist gap` is `python -m lbdist.run experiment=gap`. Every key can be overridden, in Hydra's syntax; a
remedy's own keys are remedy.NAME.KEY. With -m a key may have several values, optimizer.lr=0.001,0.003: one
study, that compares them. A folder of your own with the same groups in it (remedy/, network/, ...) joins by
--config-dir. Exit status: 0 done, 1 something failed, 2 wrong input, 130 interrupted.
"""

_KEYS = {
    "small_batch": "SB's global batch, in samples",
    "large_batch": "LB's global batch: samples, or a share of the training set",
    "epochs": "passes over the training set",
    "seeds": "confirmed runs per method, each from its own starting point",
    "remedy": "the remedies of the study: remedy=[none,robust,growth], or all",
    "num_workers": "data-parallel workers of a run: a number, or auto",
    "network.init": "where weights begin: glorot, or keep (as the constructor makes or loads them)",
    "ghost_batch_size": "batch-norm group in samples; null is the whole global batch",
    "data.root": "folder of the data set (downloaded there, or read from there)",
    "data.mean": "what inputs are less: a number, one a channel, or train",
    "data.std": "what they are over then",
    "search.epochs": "length of a search run, as a share of epochs",
    "combinations": "remedies together, as rows of their own: [[augmentation,robust]]",
    "measure.sharpness.solvers": "paper (as published), converged, or both",
    "storage": "folder or URI (s3://...) of the results: rows, checkpoints, Tune's folder, report",
    "output": "text, or json: a line of JSON for each thing that is said",
    "dry_run": "dry_run=true prints the cells that would run, and stops",
}


def help_text(folders: Sequence[Path] = ()) -> str:
    """What `--help` prints: studies, networks, data sets, remedies, optimisers and the main keys."""
    from lbdist.config import compose as configuration

    lines = [_USAGE]
    titles = {
        "experiment": "studies (experiment=)",
        "scale": "scales (scale=)",
        "network": "networks (network=)",
        "data": "data sets (data=)",
        "loss": "losses (loss=)",
        "remedy": "remedies (remedy=)",
        "measure": "measures at every minimiser (measure=)",
        "optimizer": "optimisers (optimizer=)",
    }
    for group, title in titles.items():
        lines.append(title)
        lines += [f"  {name:<20} {words}" for name, words in configuration.options(group, folders).items()]
        lines.append("")
    lines.append("main keys")
    lines += [f"  {name:<26} {words}" for name, words in _KEYS.items()]
    lines += ["", "`--cfg job` prints the whole configuration."]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        arguments: The command line without the program's name.

    Returns:
        0 when the study is finished, 1 when some of it failed, 2 for a wrong input, 130 after Ctrl-C, 143
        after SIGTERM.
    """
    processes.settle()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # one that is not UTF-8 has no φ
            stream.reconfigure(errors=HANDLER)
    asked = list(sys.argv[1:] if arguments is None else arguments)
    given = [processes.without_keys(text) for text in asked]
    keys = [f"{name}=..." for name in processes.KEYS] if given != asked else []
    command = " ".join([*keys, "python -m lbdist.run", *map(processes.for_shell, given)])
    go_on = processes.go_on(command)
    interrupts = processes.Interrupts(f"interrupted again, and ended at once; {go_on}")
    try:
        with interrupts:
            return _main(given, command)
    except InputError as error:
        warn(one_line(error))
        return 2
    except BrokenPipeError:  # `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (OSError, Failure) as error:
        warn(f"{one_line(error)}; {go_on}")
        return 1
    except BaseException as error:  # what is imported just then may make another of an interrupt
        if not (interrupts.came or isinstance(error, KeyboardInterrupt)):
            raise
        print(file=sys.stderr)
        warn(f"interrupted; {go_on}")
        return 128 + (interrupts.came[0] if interrupts.came else signal.SIGINT)


def _main(arguments: list[str], command: str) -> int:
    arguments, folders = _config_folders(arguments)
    if {"--help", "-h"} & set(arguments):
        print(help_text(folders))
        return 0
    if "--version" in arguments:
        print(f"lbdist {metadata.version('lbdist')}")
        return 0
    show = arguments[:2] if arguments[:1] == ["--cfg"] else arguments[-2:]
    if "--cfg" in arguments:
        if show != ["--cfg", "job"]:
            raise InputError("--cfg: must be followed by job, at the end of the command")
        arguments = [argument for argument in arguments if argument not in show]
    # the signals are held by now: Hydra takes half a second to import
    from omegaconf import OmegaConf

    from lbdist.config import compose as configuration
    from lbdist.config import schema, sweep

    arguments = _study_by_name(arguments, folders)
    config, parts = sweep.compose_all(arguments, folders)
    if show == ["--cfg", "job"]:
        print(OmegaConf.to_yaml(config), end="")
        return 0
    for checked in (config, *parts.values()):
        schema.check(checked)
        checked.storage = processes.without_keys(checked.storage)  # a file of the user's may hold them
    with _uncollected():
        # torch and Ray take seconds to import: not before the configuration is known to be good
        from lbdist.output import output
        from lbdist.prepare import prepare

        ready = prepare(config, parts)
    status = ready.run(command)
    if config.dry_run and status == 0 and config.name in configuration.options("experiment"):
        output(config.output).say(configuration.left_out(config, arguments, folders))
    return status


def _study_by_name(arguments: list[str], folders: Sequence[Path]) -> list[str]:
    """The arguments with `experiment=gap` for the word `gap`; any other word but `-m` is refused."""
    from lbdist.config import choices, sweep

    words = [word for word in arguments if word.startswith("-") or ("=" not in word and word[:1] != "~")]
    words = [word for word in words if word not in sweep.FLAGS]
    if not words:
        return arguments
    studies = choices.options("experiment", folders)
    if words[1:] or words[0] not in studies:
        word = words[-1] if words[0] in studies else words[0]
        near = difflib.get_close_matches(word, studies, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        if word.startswith("--"):
            hint = f"; a key is set by {word.strip('-').replace('-', '_')}=VALUE"
        allowed = "a study (--help lists them), KEY=VALUE, -m, --help, --version or --cfg job"
        raise InputError(f"{word}: must be {allowed}{hint}")
    return [f"experiment={word}" if word == words[0] else word for word in arguments]


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Keeps the garbage collector from what is imported or made in the context: a third of the start."""
    if "torch" in sys.modules:  # the process was somebody else's before
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _config_folders(arguments: Sequence[str]) -> tuple[list[str], list[Path]]:
    """The arguments without each `--config-dir DIR`, and those folders."""
    rest, folders, words = [], [], iter(arguments)
    for word in words:
        name, _, value = word.partition("=")
        if name != "--config-dir":
            rest.append(word)
        elif folder := value or next(words, ""):
            folders.append(Path(folder))
        else:
            raise InputError("--config-dir: must be followed by a folder")
    return rest, folders


def program() -> NoReturn:
    """The command as a program of its own: runs it, and ends the process with its status."""
    here = str(Path.cwd())
    if here not in sys.path:  # as `python -m` has it, so that modules of the user's are found
        sys.path.insert(0, here)
    clean = [processes.without_keys(text) for text in sys.orig_argv]
    if clean != sys.orig_argv:  # for keys would stand in the list of processes, and in Ray's
        os.execv(sys.executable, [sys.executable, *clean[1:]])
    status = main()
    if status > 128:  # what was interrupted may be half made, and would crash or hang as the interpreter ends
        processes.leave(status)
    sys.exit(status)


if __name__ == "__main__":
    program()
