"""Kaldi's tables of arrays, scp and ark, read array by array."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from lbdist.errors import InputError, one_line, require


class Archive:
    """Arrays by key, each read where it lies; only the keys and their places are kept.

    Args:
        key: The key of the command that names the file.
        file: An scp; or an ark, which is read once through, gzipped if it is called so.
        root: Where an scp's own paths start.

    Raises:
        InputError: The file is missing, cut, garbled, or has a key twice.
    """

    def __init__(self, key: str, file: Path, root: Path) -> None:
        require(file.is_file(), key, file, "a file that is there")
        self.key, self.file = key, file
        self._opened: tuple[Path, IO[bytes]] | None = None
        self.places: dict[str, tuple[Path, int]] = {}
        for name, place in self._listed(root) if file.suffix == ".scp" else self._scanned():
            if name in self.places:
                raise InputError(f"{key}: {file}: has {name} twice")
            self.places[name] = place
        require(bool(self.places), key, file, "a file with utterances in it")

    def files(self) -> set[Path]:
        """All files that it reads."""
        return {self.file, *(file for file, _ in self.places.values())}

    def __getitem__(self, name: str) -> np.ndarray:
        file, offset = self.places[name]
        try:
            return self._array(self._at(file, offset))
        except Exception as error:  # kaldiio's, over a file that is cut or garbled
            raise InputError(f"{self.key}: {file}: {name} cannot be read ({one_line(error)})") from error

    def _listed(self, root: Path) -> Iterator[tuple[str, tuple[Path, int]]]:
        there: set[Path] = set()
        try:
            lines = self.file.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{self.key}: {self.file}: cannot be read ({one_line(error)})") from error
        for number, line in enumerate(lines, 1):
            match = re.fullmatch(r"(\S+)\s+(\S.*?)(?::(\d+))?\s*", line)
            if match is None or match[2].endswith(("|", "]")):
                where = f"{self.key}: {self.file}: line {number}"
                raise InputError(f"{where}: must be UTTERANCE FILE:OFFSET, not {line.strip()!r}")
            file = root / match[2]
            if file not in there and not file.is_file():
                raise InputError(
                    f"{self.key}: {self.file}: line {number}: {file} is missing; paths start at "
                    f"root={root}, the folder that Kaldi ran in"
                )
            there.add(file)
            yield match[1], (file, int(match[3] or 0))

    def _scanned(self) -> Iterator[tuple[str, tuple[Path, int]]]:
        from kaldiio.matio import read_token

        last = "the beginning"
        try:
            stream = self._at(self.file, 0)
            while name := read_token(stream):
                place = stream.tell()
                self._array(stream)
                yield name.strip(), (self.file, place)
                last = name.strip()
        except Exception as error:  # kaldiio's, over a file that is cut or garbled
            raise InputError(
                f"{self.key}: {self.file}: cannot be read as an archive after {last} ({one_line(error)})"
            ) from error

    def _at(self, file: Path, offset: int) -> IO[bytes]:
        if self._opened is None or self._opened[0] != file:
            if self._opened is not None:
                self._opened[1].close()
            opened: Any = gzip.open if file.suffix == ".gz" else open
            self._opened = file, opened(file, "rb")
        self._opened[1].seek(offset)
        return self._opened[1]

    def _array(self, stream: IO[bytes]) -> np.ndarray:
        from kaldiio.matio import read_kaldi

        place = stream.tell()
        begins = stream.read(3)
        if begins in (b"", b"PKL", b"NPY", b"AUD", b"RIF", b"fLa"):  # a pickle would run code
            raise ValueError("there are no numbers of Kaldi's")
        stream.seek(place)
        return np.asarray(read_kaldi(stream))
