"""The user's files, on this machine or in an object store, of which nothing is ever written."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from pyarrow import fs

from lbdist.errors import InputError, one_line
from lbdist.storage import Store


class Files:
    """The files below a root, or the one file that it names; it can be pickled.

    Args:
        root: A local folder or file, or a URI that pyarrow opens: `s3://bucket/folder`.

    Attributes:
        root: As given, a local one made absolute.

    Raises:
        InputError: There is nothing there, or pyarrow cannot open the URI.
    """

    def __init__(self, root: str) -> None:
        try:
            self.store = Store(root)
            kind = self.store.filesystem.get_file_info(self.store.path).type
        except (InputError, OSError) as error:
            why = one_line(error).partition("must be ")
            raise InputError(f"data.root={root}: must be {why[2] or f'there ({why[0]})'}") from error
        self.root, self.only = str(self.store), ""
        self._first: dict[str, tuple[object, ...]] = {}
        if kind == fs.FileType.NotFound:
            raise InputError(f"data.root={root}: must be a folder that is there, or a file, or a URI of one")
        if kind == fs.FileType.File:
            self.only = self.store.path.rpartition("/")[2]

    def __str__(self) -> str:
        return self.root

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_first": {}}

    def path(self, name: str) -> str:
        """A file's place in its file system."""
        return self.store.path if self.only else f"{self.store.path}/{name}"

    def say(self, name: str) -> str:
        """A file as a line to the user names it."""
        return self.path(name) if self.store.local is not None else f"{self.store / name}"

    def names(self) -> list[str]:
        """The files below the root, sorted, without hidden ones."""
        if self.only:
            return [self.only]
        if self.store.local is None:
            return self.store.names()
        found = []
        for folder, folders, files in os.walk(self.store.local, followlinks=True):
            folders[:] = [name for name in folders if not name.startswith(".")]
            below = os.path.relpath(folder, self.store.local)
            head = "" if below == "." else f"{below}/"
            found += [f"{head}{name}" for name in files if not name.startswith(".")]
        return sorted(found)

    def open(self, name: str) -> BinaryIO:
        """A file to read and to seek in."""
        if name not in self._first:
            self.stamp(name)
        if self.store.local is not None:
            return Path(self.path(name)).open("rb")
        return cast(BinaryIO, self.store.filesystem.open_input_file(self.path(name)))

    def here(self, name: str) -> str | bytes:
        """A local file's path, or else its content."""
        if self.store.local is not None:
            if name not in self._first:
                self.stamp(name)
            return self.path(name)
        with self.open(name) as file:
            return bytes(file.read())

    def stamp(self, name: str) -> tuple[object, ...]:
        """What tells a file from the one that was there before, as its inode and times on a local disk."""
        stamp: tuple[object, ...]
        if self.store.local is not None:
            found = os.stat(self.path(name))  # noqa: PTH116 (of many files, a Path each takes longer)
            # mtime can be set to what it was, ctime cannot
            stamp = name, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
        else:
            info = self.store.filesystem.get_file_info(self.path(name))
            stamp = name, info.size, info.mtime_ns
        self._first.setdefault(name, stamp)
        return stamp

    @contextlib.contextmanager
    def unchanged(self) -> Iterator[None]:
        """Holds the files that are read while the context lasts to what they were before.

        Raises:
            InputError: One has changed, or is gone, or cannot be read.
        """
        try:
            yield
            after = {name: self.stamp(name) for name in self._first}
        except FileNotFoundError as error:
            gone = error.filename or self.root
            raise InputError(f"data.root: {gone} is gone since this began; {_AGAIN}") from error
        except OSError as error:
            raise InputError(f"data.root={self.root!r}: cannot be read ({one_line(error)})") from error
        for name, stamp in after.items():
            if stamp != self._first[name]:
                raise InputError(f"data.root: {self.say(name)} has changed while it was read; {_AGAIN}")


_AGAIN = "run the command again once nobody writes there"
