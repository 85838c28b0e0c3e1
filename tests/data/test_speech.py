"""Spoken digits: framing against a plain loop, the data set's own split, and recordings that are wrong."""

import wave
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lbdist.data.speech import RATE, SpokenDigits, log_mel, spliced
from lbdist.errors import InputError

REAL = Path(__file__).parents[2].parent / "shared" / "data" / "fsdd"


def record(path: Path, samples: np.ndarray, rate: int = RATE, channels: int = 1) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((samples * 32767).astype("<i2").tobytes())


def recordings(folder: Path, numbers: range = range(3, 8), digits: int = 10) -> Path:
    """One speaker's digits: tones whose pitch tells the digit, of different lengths."""
    (folder / "recordings").mkdir(parents=True)
    for digit in range(digits):
        for number in numbers:
            time = np.arange(1200 + 80 * number) / RATE
            tone = 0.5 * np.sin(2 * np.pi * (300 + 200 * digit) * time * (1 + time))
            record(folder / "recordings" / f"{digit}_ann_{number}.wav", tone)
    return folder


def test_recordings_0_to_4_are_the_test_set_and_classes_are_digit_and_part(tmp_path):
    data = SpokenDigits(root=str(recordings(tmp_path)), states=2).load()
    frames = {number: 1 + (1200 + 80 * number - 200) // 80 for number in range(3, 8)}
    assert len(data.test) == 10 * (frames[3] + frames[4])
    assert len(data.train) == 10 * (frames[5] + frames[6] + frames[7])
    assert data.shape == (360,) and data.classes == 20 and data.train.inputs.dtype == np.float32
    assert set(data.train.labels) == set(range(20))
    first = data.train.labels[: frames[5]]  # of the first recording, digit 0: its halves
    assert list(first) == sorted(first) and abs((first == 0).sum() - (first == 1).sum()) <= 1


def test_parquet_holds_the_same(tmp_path):
    folder = recordings(tmp_path / "loose")
    audio = [
        {"bytes": file.read_bytes(), "path": file.name}
        for file in sorted((folder / "recordings").iterdir(), reverse=True)
    ]
    (tmp_path / "table").mkdir()
    pq.write_table(pa.table({"audio": audio}), tmp_path / "table" / "train.parquet")
    one, two = (SpokenDigits(root=str(root)).load() for root in (folder, tmp_path / "table"))
    assert one.train.digest == two.train.digest and one.test.digest == two.test.digest


def test_a_tone_is_in_its_band_and_loudness_is_none():
    """Of two tones after each other, a band's energy is highest while its own sounds, however loud."""
    low, high = (np.sin(2 * np.pi * pitch * np.arange(4000) / RATE) for pitch in (500, 3000))
    features = log_mel(np.concatenate([low, high]).astype("f4"))
    assert features.shape == (1 + (8000 - 200) // 80, 40)
    np.testing.assert_allclose(features.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(features.std(0), 1, atol=1e-3)
    half = len(features) // 2
    band = {pitch: round(2595 * np.log10(1 + pitch / 700) / (2595 * np.log10(1 + 4000 / 700)) * 41) - 1
            for pitch in (500, 3000)}  # fmt: skip
    assert features[: half - 2, band[500]].min() > 0 > features[half + 2 :, band[500]].max()
    assert features[half + 2 :, band[3000]].min() > 0 > features[: half - 2, band[3000]].max()


@pytest.mark.parametrize("frames", [1, 3, 12])
def test_splicing(frames):
    features = np.random.default_rng(0).normal(size=(frames, 5))
    found = spliced(features, 4)
    for frame in range(frames):
        around = [features[min(max(frame + shift, 0), frames - 1)] for shift in range(-4, 5)]
        np.testing.assert_array_equal(found[frame], np.concatenate(around))


def test_a_recording_shorter_than_a_frame_is_one(tmp_path):
    assert log_mel(np.zeros(50, "f4")).shape == (1, 40)


def _rate(folder):
    record(folder / "recordings" / "1_bob_9.wav", np.zeros(800), rate=16000)


def _garbled(folder):
    (folder / "recordings" / "1_bob_9.wav").write_bytes(b"RIFF no")


def _name(folder):
    record(folder / "recordings" / "one.wav", np.zeros(800))


@pytest.mark.parametrize(
    ("harm", "says"),
    [(_rate, "1_bob_9.wav: must hold samples of 16 bits, one channel, at 8000 Hz"),
     (_garbled, "1_bob_9.wav: cannot be read as WAV"),
     (_name, "one.wav: must be called DIGIT_SPEAKER_NUMBER.wav")],
)  # fmt: skip
def test_what_is_wrong_is_named(tmp_path, harm, says):
    folder = recordings(tmp_path, range(4, 6), 2)
    harm(folder)
    with pytest.raises(InputError, match=says):
        SpokenDigits(root=str(folder)).load()


def test_settings_and_folders(tmp_path):
    with pytest.raises(InputError, match=r"data.root=None: must be the folder with recordings/"):
        SpokenDigits()
    with pytest.raises(InputError, match=r"data.states=0: must be a whole number from 1 to 100"):
        SpokenDigits(root="x", states=0)
    with pytest.raises(InputError, match=r"data.root="):
        SpokenDigits(root=str(tmp_path)).load()
    with pytest.raises(InputError, match="test \\(numbers 0 to 4\\) recordings"):
        SpokenDigits(root=str(recordings(tmp_path / "a", range(5, 7), 2))).load()


@pytest.mark.skipif(not REAL.exists(), reason="the real recordings are not here")
def test_the_real_recordings():
    data = SpokenDigits(root=str(REAL)).load()
    assert (len(data.train), len(data.test), data.classes) == (112_911, 12_326, 30)
    assert np.isfinite(data.train.inputs).all()
    assert np.bincount(data.test.labels, minlength=30).min() > 300
