"""Free Spoken Digit Dataset: real speech that anyone may use, framed as TIMIT is for the paper's network F2.

A sample is a frame of 40 log-mel energies between four frames on either side, 360 numbers; its class is the
digit and the part of the recording that the frame lies in, as a uniform segmentation into states gives it.
"""

from __future__ import annotations

import functools
import io
import re
import wave
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lbdist.data.base import Dataset, DataSource, Split, is_integer
from lbdist.errors import InputError, one_line, require

RATE, WINDOW, HOP, MELS, CONTEXT = 8000, 200, 80, 40, 4
"""Hertz; samples of a frame (25 ms) and between frames (10 ms); mel bands; frames on either side."""

_TEST = 5  # recordings 0 to 4 of each speaker and digit, as the data set says
_FLOOR = 1e-8
_PLACE = (
    "the folder with recordings/ of github.com/Jakobovski/free-spoken-digit-dataset, or Parquet files of "
    "its WAV: set data.root=DIR"
)


@dataclass
class SpokenDigits(DataSource):
    """Frames, float32 of shape (N, 360), in 10 times `states` classes.

    Attributes:
        root: The folder.
        states: Parts that each recording is cut into.
    """

    root: str | None = None
    states: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        require(isinstance(self.root, str), "data.root", self.root, _PLACE)
        good = is_integer(self.states, 1) and self.states <= 100
        require(good, "data.states", self.states, "a whole number from 1 to 100")

    def read(self) -> Dataset:
        """Reads all recordings; those numbered 0 to 4 are the test set.

        Raises:
            InputError: A recording that is missing, damaged, or not as it is called.
        """
        parts: dict[bool, list[tuple[np.ndarray, np.ndarray]]] = {True: [], False: []}
        for name, content in sorted(self._recordings(), key=lambda found: found[0]):
            match = re.fullmatch(r"(\d)_\w+?_(\d+)\.wav", name)
            if match is None:
                raise InputError(f"data.root: {name}: must be called DIGIT_SPEAKER_NUMBER.wav")
            features = spliced(log_mel(_samples(name, content)))
            states = np.arange(len(features)) * self.states // len(features)
            parts[int(match[2]) < _TEST].append((features, int(match[1]) * self.states + states))
        for is_test, found in parts.items():
            what = "test (numbers 0 to 4)" if is_test else "training (numbers from 5 on)"
            require(len(found) > 0, "data.root", self.root, f"a folder with {what} recordings in it")
        train, test = (Split(*map(np.concatenate, zip(*parts[part], strict=True))) for part in (False, True))
        return Dataset(train, test, 10 * self.states)

    def _recordings(self) -> Iterator[tuple[str, bytes]]:
        """Names and contents of the WAV files, loose or in Parquet."""
        root = Path(str(self.root)).expanduser()
        require(root.is_dir(), "data.root", self.root, _PLACE)
        files = sorted([*root.glob("recordings/*.wav"), *root.glob("*.wav")])
        for file in files:
            yield file.name, file.read_bytes()
        if files:
            return
        tables = sorted([*root.glob("*.parquet"), *root.glob("data/*.parquet")])
        require(len(tables) > 0, "data.root", self.root, _PLACE)
        for file in tables:
            try:
                with pq.ParquetFile(file) as opened:
                    for batch in opened.iter_batches(256, columns=["audio.bytes", "audio.path"]):
                        for audio in batch.column(0).to_pylist():
                            yield Path(str(audio["path"])).name, audio["bytes"] or b""
            except (pa.ArrowException, OSError, KeyError, IndexError, TypeError) as error:
                raise InputError(
                    f"data.root: {file}: must have a column audio of WAV bytes and path ({one_line(error)})"
                ) from error


def _samples(name: str, content: bytes) -> np.ndarray:
    """A recording's samples in [-1, 1)."""
    try:
        with wave.open(io.BytesIO(content)) as opened:
            form = opened.getframerate(), opened.getsampwidth(), opened.getnchannels()
            values = np.frombuffer(opened.readframes(opened.getnframes()), "<i2") if form[1] == 2 else None
    except (wave.Error, EOFError, ValueError) as error:
        raise InputError(f"data.root: {name}: cannot be read as WAV ({one_line(error)})") from error
    if values is None or form != (RATE, 2, 1) or not len(values):
        raise InputError(f"data.root: {name}: must hold samples of 16 bits, one channel, at {RATE} Hz")
    return values.astype(np.float32) / 32768


@functools.cache
def _filters() -> np.ndarray:
    """Triangles of equal width in mel from 0 Hz to half the rate, shape (bins, 40) (Davis, 1980)."""
    bins = 256 // 2 + 1
    mel = lambda hertz: 2595 * np.log10(1 + hertz / 700)  # noqa: E731
    edges = 700 * (10 ** (np.linspace(0, mel(RATE / 2), MELS + 2) / 2595) - 1)
    at = np.linspace(0, RATE / 2, bins)[:, None]
    rising = (at - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - at) / (edges[2:] - edges[1:-1])
    return np.maximum(0, np.minimum(rising, falling))


def log_mel(samples: np.ndarray) -> np.ndarray:
    """Log-mel energies of each frame, shape (frames, 40), of mean 0 and deviation 1 in the recording.

    Args:
        samples: Shape (n,); fewer than a frame's are filled up with zeros.

    Example:
        >>> log_mel(np.sin(np.arange(1000.0))).shape
        (11, 40)
    """
    louder = np.append(samples[:1], samples[1:] - 0.97 * samples[:-1])  # pre-emphasis
    louder = np.pad(louder, (0, max(0, WINDOW - len(louder))))
    frames = np.lib.stride_tricks.sliding_window_view(louder, WINDOW)[::HOP]
    power = np.abs(np.fft.rfft(frames * np.hamming(WINDOW), 256)) ** 2
    energies = np.log(power @ _filters() + _FLOOR)
    return ((energies - energies.mean(0)) / (energies.std(0) + 1e-5)).astype(np.float32)


def spliced(features: np.ndarray, context: int = CONTEXT) -> np.ndarray:
    """Each frame between its neighbours, the first and last repeated beyond the ends.

    Args:
        features: Shape (frames, d).
        context: Frames on either side.

    Returns:
        Shape (frames, (2 context + 1) d).

    Example:
        >>> spliced(np.array([[1.0], [2.0], [3.0]]), 1).tolist()
        [[1.0, 1.0, 2.0], [1.0, 2.0, 3.0], [2.0, 3.0, 3.0]]
    """
    count = len(features)
    around = np.arange(count)[:, None] + np.arange(-context, context + 1)
    return features[around.clip(0, count - 1)].reshape(count, -1)
