"""A folder of pictures: one folder a class, in train/ and test/ beside each other, or one to be split.

Classes are numbered in the alphabetical order of their folders, as torchvision's ImageFolder has them. The
pictures are in the order of their own names, whatever their class: written out by number, they are as before.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lbdist.data.brought import TEST, TRAIN, Part
from lbdist.data.files import Files
from lbdist.data.labels import Labels
from lbdist.data.layouts import there
from lbdist.data.pictures import CHUNK, ENDINGS, Encoded, Item
from lbdist.data.seen import Pictured
from lbdist.errors import InputError


@dataclass
class Folder(Pictured):
    """Pictures, uint8 of shape (N, C, H, W); a class is the name of the folder that a picture lies in."""

    def parts(self) -> list[Part]:
        """The pictures of each split by class."""
        files = self.files
        names = [name for name in files.names() if name.lower().endswith(ENDINGS)]
        found: dict[str, dict[str, list[str]]] = {}
        above = {name.partition("/")[0] for name in names}
        known = {*TRAIN, *TEST, *(self.splits or {}).values()}
        in_splits = bool(above & known) and (self.held_out is None or "train" in above)
        for name in names:
            folders = name.split("/")[:-1]
            split = folders.pop(0) if in_splits and folders else ""
            if folders:
                found.setdefault(split, {}).setdefault(folders[0], []).append(name)
        if not found:
            has = "pictures of no class" if names else "no pictures"
            raise InputError(
                f"data.root={self.root!r}: must hold a folder of pictures for each class, in train/ and "
                f"test/ or in itself; it holds {has}: {there(files, str(self.root))}"
            )
        splits = {
            split: [name for own in classes.values() for name in own] for split, classes in found.items()
        }
        taken = [split for split, _ in self.chosen(splits, "{}/CLASS/")]
        every = sorted({label for split in taken for label in found[split]})
        if len(every) < 2:
            raise InputError(f"data.root={self.root!r}: must hold two classes or more, not {every[0]} alone")
        for label in every:
            for split in taken:
                if label not in found[split]:
                    other = next(s for s in taken if label in found[s])
                    raise InputError(
                        f"data.root: {files.say(f'{split}/{label}')} has no pictures, but "
                        f"{files.say(f'{other}/{label}')} has {len(found[other][label])}"
                    )
        return [self._part(files, found[split]) for split in taken]

    def _part(self, files: Files, found: dict[str, list[str]]) -> Part:
        named = [(label, name) for label, names in found.items() for name in names]
        named.sort(key=lambda one: (_natural(one[1]), one[0]))
        place = _Named(files, tuple(name for _, name in named))
        labels = Labels(np.array([label for label, _ in named]), [(f"{files}", len(named))])
        return Part(labels, self.pictures(place))


def _natural(name: str) -> list[str | int]:
    """By which files are sorted: their own names, in which 10 comes after 9."""
    parts = re.split(r"(\d+)", name.rpartition("/")[2])
    return [int(part) if at % 2 else part for at, part in enumerate(parts)]


@dataclass(frozen=True)
class _Named(Encoded):
    """Pictures that are files."""

    files: Files
    names: tuple[str, ...]

    def __str__(self) -> str:
        return f"data.root={self.files.root!r}"

    def name(self) -> str:
        """The files, as they are now."""
        return hashlib.sha256(repr([self.files.stamp(name) for name in self.names]).encode()).hexdigest()

    def chosen(self, kept: np.ndarray) -> Iterator[list[Item]]:
        """Local files are read by who decodes them, others here."""
        for start in range(0, len(kept), CHUNK):
            some = [self.names[at] for at in kept[start : start + CHUNK].tolist()]
            yield [(f"{self.files.say(name)}", self.files.here(name)) for name in some]
