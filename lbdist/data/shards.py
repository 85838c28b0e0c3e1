"""Which file is of which split, and which number, by its name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from lbdist.data.files import Files
from lbdist.errors import InputError

_PLAIN = ("", "data", "default")
"""Folders whose name is no split's."""


@dataclass(frozen=True)
class _Shard:
    """What a name says: `train.parquet`, `train-00000-of-00003.parquet` (and a hash), `train/7.parquet`."""

    name: str
    split: str
    number: int | None
    total: int | None

    @classmethod
    def of(cls, name: str, ending: str) -> _Shard | None:
        folders, _, file = name.removesuffix(ending).rpartition("/")
        form = r"(.*?)(?:[-_.]?(\d+)(?:-of-(\d+)(?:-[0-9a-f]{6,})?)?)?"
        match = re.fullmatch(form, file)
        assert match is not None
        number, total = (None if found is None else int(found) for found in match.group(2, 3))
        above, _, folder = folders.rpartition("/")
        if folders in _PLAIN:
            return cls(name, match[1] if number is None or match[1] else "", number, total)
        return cls(name, folder, number, total) if above in _PLAIN else None


def splits(files: Files, endings: Sequence[str]) -> dict[str, list[str]]:
    """The files of each split that names tell, unsorted, as `{"train": [...]}`.

    Args:
        files: Where they lie: in the folder, its `data/` or `default/`, or a folder of the split's name.
        endings: What their names end with.
    """
    found: dict[str, list[str]] = {}
    for name in files.names():
        for ending in endings:
            if name.endswith(ending):
                if (shard := _Shard.of(name, ending)) is not None:
                    found.setdefault(shard.split, []).append(name)
                break
    return found


def whole(files: Files, names: Sequence[str], endings: Sequence[str]) -> list[str]:
    """The files of one split by their numbers.

    Raises:
        InputError: One is missing, or left from another time.
    """
    ending = {name: next(e for e in endings if name.endswith(e)) for name in names}
    shards = [shard for name in names if (shard := _Shard.of(name, ending[name])) is not None]
    if len(shards) == 1 and shards[0].total is None:
        return [shards[0].name]
    first = max(shards, key=lambda shard: (shard.total is not None, shard.total or 0, shard.name))
    kept: dict[int, str] = {}
    for shard in shards:
        if shard.number is None or shard.total != first.total or shard.number in kept:
            other = kept.get(shard.number or 0, first.name)
            raise InputError(
                f"data.root: {files.say(shard.name)} and {files.say(other)} are not shards of one set; "
                "remove the one that is stale"
            )
        kept[shard.number] = shard.name
    begin = 0 if first.total is not None else min(1, *kept)
    numbers = range(begin, begin + (first.total or max(kept) - begin + 1))
    lost = [number for number in numbers if number not in kept]
    if lost:
        folder, mark, last = first.name.rpartition("/")
        digits = re.sub(r"\d+", lambda found: f"{lost[0]:0{len(found[0])}}", last, count=1)
        raise InputError(
            f"data.root: {files.say(folder + mark + digits)} is missing: {len(kept)} of {len(numbers)} are "
            "there"
        )
    if first.total is not None and max(kept) >= first.total:
        raise InputError(f"data.root: {files.say(kept[max(kept)])} has a number beyond its own count")
    return [kept[number] for number in sorted(kept)]
