"""Encoded pictures: what of a file becomes an array, without loss of anything unsaid, on all cores."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import multiprocessing
import os
import signal
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image, ImageOps

from lbdist.data.mapped import Recipe
from lbdist.errors import Failure, InputError, require
from lbdist.processes import INTERRUPTS

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "PPM", "TIFF")
ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff")
"""Of the files that are pictures."""

CHUNK = 64  # pictures that a process decodes at a time
_EQUAL = 0  # `channels` of grey pictures that are kept as colour
_DIE_WITH_PARENT = 1  # prctl's PR_SET_PDEATHSIG

Item = tuple[str, str | bytes | None]
"""What a line calls a picture, and where it is or what it is encoded as."""


class Coloured(Exception):
    """A picture has colours, where those before it had none."""


class Encoded(ABC):
    """Where encoded pictures come from; sent to other processes and nodes."""

    @abstractmethod
    def name(self) -> str:
        """Says which pictures these are, as they are now."""

    @abstractmethod
    def chosen(self, kept: np.ndarray) -> Iterator[list[Item]]:
        """The pictures at these sorted positions, in order, some at a time."""


@dataclass(frozen=True)
class Look:
    """How a picture is taken.

    Attributes:
        channels: 1 for grey, 3 for colour, None as it is.
        resize: (height, width) that it is brought to; one number is that of the shorter side, of whose
            middle a square is cut; empty leaves it.
    """

    channels: int | None = None
    resize: tuple[int, ...] = ()

    @classmethod
    def of(cls, channels: object, resize: object) -> Look:
        """What a user says.

        Raises:
            InputError: Naming `data.channels` or `data.resize`.
        """
        require(channels in (None, 1, 3), "data.channels", channels, "1, 3 or null")
        sides = [] if resize is None else list(resize) if isinstance(resize, list | tuple) else [resize]
        good = len(sides) <= 2 and all(
            isinstance(s, int) and not isinstance(s, bool) and s > 0 for s in sides
        )
        allowed = "[HEIGHT,WIDTH], or a number for a square cut of the middle, or null"
        require(good and (bool(sides) or resize is None), "data.resize", resize, allowed)
        return cls(channels, tuple(sides))  # type: ignore[arg-type]

    def decode(self, item: Item) -> np.ndarray:
        """A picture as uint8 of shape (C, H, W).

        Raises:
            InputError: It is none, or something of it would be lost without a word.
        """
        where, data = item
        if data is None:
            raise InputError(f"data.root: {where} holds no bytes")
        try:
            opened = Image.open(BytesIO(data) if isinstance(data, bytes) else data, formats=_FORMATS)
            with opened:
                return self.taken(opened)
        except Coloured:
            raise
        except InputError as error:
            raise InputError(f"data.root: {where} {error}") from error
        except FileNotFoundError:
            raise
        except Exception as error:  # Pillow's decoders raise many kinds
            known = ", ".join(_FORMATS)
            raise InputError(f"data.root: {where} cannot be decoded as one of {known}") from error

    def taken(self, opened: Image.Image) -> np.ndarray:
        """A picture of Pillow's as uint8 of shape (C, H, W)."""
        image = self._sized(self._as_stored(opened))
        pixels = np.frombuffer(image.tobytes(), np.uint8).reshape(image.height, image.width, -1)
        return pixels.transpose(2, 0, 1)

    def _sized(self, image: Image.Image) -> Image.Image:
        if not self.resize or self.resize == (image.height, image.width):
            return image
        if len(self.resize) == 2:
            return image.resize(self.resize[::-1], Image.Resampling.BILINEAR)
        side = self.resize[0]
        return ImageOps.fit(image, (side, side), Image.Resampling.BILINEAR)

    def _as_stored(self, opened: Image.Image) -> Image.Image:
        """The picture in the mode that is wanted, upright; what that would lose without a word is refused."""
        frames = getattr(opened, "n_frames", 1)
        if frames > 1:
            raise InputError(f"has {frames} frames; must be one image")
        image = ImageOps.exif_transpose(opened) if opened.info.get("exif") else opened
        if image.mode.startswith("I;16"):  # the high byte, as Pillow takes of colours of 16 bits
            image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
        elif image.mode in ("I", "F"):
            raise InputError(
                f"has mode {image.mode}, numbers of 32 bits; must be of 8 or 16 bits per channel"
            )
        if image.has_transparency_data:
            if np.asarray(image.convert("RGBA"))[..., 3].min() < 255:
                raise InputError("is transparent in places, which has no colour; must be opaque")
            image = image.convert("RGB" if image.mode != "LA" else "L")
        if self.channels == _EQUAL:
            colour = image.convert("RGB")
            if np.ptp(np.asarray(colour), axis=2).any():
                raise Coloured
            return colour.getchannel(0)
        mode = {1: "L", 3: "RGB"}.get(self.channels or 0, "L" if image.mode == "L" else "RGB")
        return image if image.mode == mode else image.convert(mode)


@dataclass(frozen=True)
class Pictures(Recipe):
    """Some of the pictures of a place, uint8 of shape (N, C, H, W).

    Attributes:
        place: Where they come from.
        kept: Which of them, as sorted positions.
        look: How they are taken.
        size: Of one, (C, H, W).
    """

    place: Encoded
    kept: np.ndarray
    look: Look
    size: tuple[int, ...]

    costly: ClassVar[bool] = True

    @classmethod
    def of(cls, place: Encoded, kept: np.ndarray, look: Look) -> Pictures:
        """Of the size that the first one has."""
        first = next((items[0] for items in place.chosen(kept)), None)
        return cls(place, kept, look, (1, 1, 1) if first is None else look.decode(first).shape)

    def __str__(self) -> str:
        return str(self.place)

    def name(self) -> str:
        """The pictures, as they are now, and how they are taken."""
        found = hashlib.sha256(repr((self.place.name(), self.look, self.size)).encode())
        found.update(self.kept.data)
        return found.hexdigest()

    def shape(self) -> tuple[int, ...]:
        """(N, C, H, W)."""
        return len(self.kept), *self.size

    def fill(self, array: np.ndarray) -> None:
        """Decodes on all cores where the array lies in a file, which processes share.

        Raises:
            InputError: Naming the picture that is not as the first one, or cannot be decoded.
        """
        chunks = self._chunks()
        cores = len(os.sched_getaffinity(0))
        if cores == 1 or len(array) < 16 * CHUNK or not isinstance(array, np.memmap):
            for start, items in chunks:
                self.put(array, start, items)
            return
        # threads would wait for each other: much of decoding a small picture is Python
        fork = multiprocessing.get_context("fork")
        pool = ProcessPoolExecutor(cores, fork, _begin, (array, self))
        waiting: deque[Future[None]] = deque()
        try:
            with _unheard():
                pool.submit(int)  # starts the processes, all of them
            for start, items in chunks:
                waiting.append(pool.submit(_put, start, items))
                if len(waiting) > 4 * cores:
                    waiting.popleft().result()
            while waiting:
                waiting.popleft().result()
        except BrokenProcessPool as error:
            raise Failure(f"data.root: a process that decoded pictures died ({self})") from error
        finally:
            pool.shutdown(cancel_futures=True)

    def _chunks(self) -> Iterator[tuple[int, list[Item]]]:
        done = 0
        for items in self.place.chosen(self.kept):
            for at in range(0, len(items), CHUNK):
                yield done + at, items[at : at + CHUNK]
            done += len(items)

    def put(self, array: np.ndarray, start: int, items: Sequence[Item]) -> None:
        """Decodes pictures to their places in an array, from `start` on."""
        for at, item in enumerate(items, start):
            picture = self.look.decode(item)
            if picture.shape != self.size:
                way = "data.resize=[HEIGHT,WIDTH] brings them to one"
                if picture.shape[1:] == self.size[1:]:
                    way = "see data.channels for the first number"
                raise InputError(
                    f"data.root: {item[0]} has shape {picture.shape}, but the first one has {self.size}; all "
                    f"must have one: {way}"
                )
            array[at] = picture


_TASK: list[tuple[np.memmap, Pictures]] = []  # of a process that decodes


@contextlib.contextmanager
def _unheard() -> Iterator[None]:
    """Interrupts wait: one amid forks would be lost, or leave processes that the end waits for."""
    heard = signal.pthread_sigmask(signal.SIG_BLOCK, INTERRUPTS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, heard)


def _begin(array: np.memmap, pictures: Pictures) -> None:
    """In a process that decodes: it ends with its parent, who alone hears of signals."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, INTERRUPTS)
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    _TASK[:] = [(array, pictures)]


def _put(start: int, items: list[Item]) -> None:
    """Decodes pictures to their place in the file, written at once: a fault for each page takes longer."""
    array, pictures = _TASK[0]
    some = np.empty((len(items), *pictures.size), np.uint8)
    pictures.put(some, 0, items)
    with Path(str(array.filename)).open("r+b", buffering=0) as file:
        file.seek(array.offset + start * some[0].nbytes)
        file.write(some.data)


def looked_at(place: Encoded, kept: np.ndarray, look: Look) -> Look:
    """How pictures are taken if nobody said: those that begin grey, though kept as colour, as grey ones."""
    if look.channels is not None:
        return look
    items = next(place.chosen(kept), [])[:CHUNK]
    shown = [look.decode(item) for item in items]
    if shown and all(len(one) == 3 and not np.ptp(one, axis=0).any() for one in shown):
        return replace(look, channels=_EQUAL)
    return look
