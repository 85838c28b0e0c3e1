"""What the smaller commands have in common: places, KEY=VALUE, one line for what is wrong, an exit status."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from lbdist.errors import Failure, InputError, one_line, warn


def run(
    do: Callable[[list[str], dict[str, str]], None],
    arguments: Sequence[str] | None,
    usage: str,
    places: int,
    keys: Sequence[str],
) -> int:
    """Runs a command.

    Args:
        do: What it does, given the places and the values by their keys.
        arguments: The command line without the program's name; None for this process's.
        usage: What `--help` prints.
        places: How many folders or URIs it takes.
        keys: What it takes as KEY=VALUE.

    Returns:
        0 when it is done, 1 when it could not be, 2 for a wrong input, 130 after Ctrl-C.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or {"--help", "-h"} & set(given):
        print(usage)
        return 0
    pairs = [word.partition("=") for word in given]
    values = {key: value for key, mark, value in pairs if mark and key in keys}
    found = [word for word, (key, mark, _) in zip(given, pairs, strict=True) if not (mark and key in keys)]
    try:
        if len(found) != places or any(word.startswith("-") for word in found):
            wrong = next((word for word in found if word.startswith("-")), " ".join(found) or "nothing")
            allowed = f"{places} folder{'s' * (places > 1)}, and {', '.join(f'{key}=' for key in keys)}"
            raise InputError(f"{wrong}: must be {allowed} (--help)")
        do(found, values)
    except InputError as error:
        warn(one_line(error))
        return 2
    except (OSError, Failure) as error:
        warn(one_line(error))
        return 1
    except KeyboardInterrupt:
        warn("interrupted")
        return 130
    return 0
