from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from lbdist.data.base import subset
from lbdist.data.parquet import Parquet
from lbdist.errors import InputError
from tests.support.files import encode, write_parquet

SHARED = Path(__file__).parents[2].parent / "shared/data"
RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (10, 6, 8, 3), np.uint8)
GREY = RNG.integers(0, 256, (10, 6, 8), np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten training and two test images."""
    images = [encode(image) for image in COLOUR]
    write_parquet(tmp_path / "train.parquet", images, [0, 1, 2, 3, 0, 1, 2, 3, 0, 1])
    write_parquet(tmp_path / "test.parquet", images[:2], [3, 0])
    return tmp_path


def refused(folder: Path, **fields: object) -> str:
    with pytest.raises(InputError) as caught:
        Parquet(root=str(folder), **fields).load()  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_lossless_colour(tmp_path: Path, kind: str) -> None:
    """In shards, under data/, with a validation split instead of a test split."""
    images = [encode(image, kind) for image in COLOUR]
    write_parquet(tmp_path / "data/train-00000-of-00002.parquet", images[:7], list(range(7)), image="img")
    write_parquet(tmp_path / "data/train-00001-of-00002.parquet", images[7:], [7, 8, 9], image="img")
    write_parquet(tmp_path / "data/validation-00000-of-00001.parquet", images[4:6], [4, 5], image="img")
    data = Parquet(root=str(tmp_path)).load()
    assert (data.shape, data.classes) == ((3, 6, 8), 10)
    assert data.train.inputs.dtype == np.uint8 and data.train.labels.dtype == np.int64
    assert np.array_equal(data.train.inputs, COLOUR.transpose(0, 3, 1, 2))
    assert np.array_equal(data.test.inputs, data.train.inputs[4:6])
    assert data.train.labels.tolist() == list(range(10)) and data.test.labels.tolist() == [4, 5]


def test_grey_png(tmp_path: Path) -> None:
    for part in ("train", "test"):
        write_parquet(tmp_path / f"{part}.parquet", [encode(image) for image in GREY], [0, 1] * 5)
    assert np.array_equal(Parquet(root=str(tmp_path)).load().train.inputs, GREY[:, None])
    colour = Parquet(root=str(tmp_path), channels=3).load()
    assert np.array_equal(colour.train.inputs, np.repeat(GREY[:, None], 3, 1))


def test_jpeg(tmp_path: Path) -> None:
    """Lossy, so a smooth image to a few grey levels."""
    image = np.linspace(0, 255, 64).astype(np.uint8).reshape(8, 8)
    for part in ("train", "test"):
        write_parquet(tmp_path / f"{part}.parquet", [encode(image, "JPEG")], [1])
    data = Parquet(root=str(tmp_path)).load()
    assert np.abs(data.train.inputs[0, 0].astype(int) - image).max() < 12


def test_palette_and_alpha_become_rgb(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.fromarray(COLOUR[0]).convert("RGBA").save(stream, "PNG")
    palette = io.BytesIO()
    Image.fromarray(COLOUR[0]).quantize(48).save(palette, "PNG")
    for part in ("train", "test"):
        write_parquet(tmp_path / f"{part}.parquet", [stream.getvalue(), palette.getvalue()], [0, 1])
    data = Parquet(root=str(tmp_path)).load()
    assert data.shape == (3, 6, 8)
    assert np.array_equal(data.train.inputs[0], COLOUR[0].transpose(2, 0, 1))


def test_many_batches_and_a_subset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lbdist.data.parquet._BATCH", 4)
    monkeypatch.setattr("lbdist.data.pictures.CHUNK", 2)
    images = [encode(image) for image in COLOUR]
    write_parquet(tmp_path / "train-0.parquet", images[:7], list(range(7)))
    write_parquet(tmp_path / "train-1.parquet", images[7:], [7, 8, 9])
    write_parquet(tmp_path / "test.parquet", images, list(range(10)))
    whole = Parquet(root=str(tmp_path)).load()
    assert np.array_equal(whole.train.inputs, COLOUR.transpose(0, 3, 1, 2))
    for count in range(1, 11):
        part = Parquet(root=str(tmp_path), train_samples=count, test_samples=1).load()
        assert np.array_equal(part.train.inputs, whole.train.inputs[subset(10, count)])
        assert np.array_equal(part.train.labels, subset(10, count))
        assert part.classes == 10


def test_columns_by_name(tmp_path: Path) -> None:
    for part in ("train", "test"):
        write_parquet(tmp_path / f"{part}.parquet", [encode(COLOUR[0])], [1], image="photo", label="kind")
    data = Parquet(root=str(tmp_path), inputs="photo", label="kind", classes=5).load()
    assert data.classes == 5
    assert (
        "no column label or labels or fine_label or target or y; set data.label to one of photo, kind"
        in refused(tmp_path)
    )
    assert Parquet(root=str(tmp_path), label="kind", classes=5).load().classes == 5  # the only one left
    assert "no column picture" in refused(tmp_path, label="kind", inputs="picture")


def test_fine_label(tmp_path: Path) -> None:
    for part in ("train", "test"):
        write_parquet(tmp_path / f"{part}.parquet", [encode(COLOUR[0])], [1], label="fine_label")
    assert Parquet(root=str(tmp_path)).load().train.labels.tolist() == [1]
    assert "no column coarse" in refused(tmp_path, label="coarse")


def test_missing_files(tmp_path: Path) -> None:
    assert "must be a folder that is there" in refused(tmp_path / "absent")
    assert "must hold train.parquet or train-*-of-*.parquet" in refused(tmp_path)
    write_parquet(tmp_path / "train.parquet", [encode(COLOUR[0])], [0])
    wanted = "test.parquet or test-*-of-*.parquet or validation.parquet or"
    assert f"must hold {wanted}" in refused(tmp_path)
    assert "there are the splits train: set data.splits" in refused(tmp_path)


@pytest.mark.parametrize("content", [b"", b"not a Parquet file", None])
def test_files_that_are_not_parquet(folder: Path, content: bytes | None) -> None:
    file = folder / "test.parquet"
    file.write_bytes(file.read_bytes()[:-30] if content is None else content)
    line = refused(folder)
    assert str(file) in line and "cannot be read as Parquet" in line


def test_damaged_pages(folder: Path) -> None:
    """The footer is whole, what it points to is not."""
    file = folder / "train.parquet"
    data = bytearray(file.read_bytes())
    data[4:-1500] = b"\xff" * (len(data) - 1504)
    file.write_bytes(data)
    assert str(file) in refused(folder)


def test_images_that_cannot_be_decoded(folder: Path) -> None:
    good = encode(COLOUR[0])
    stream = io.BytesIO()
    Image.fromarray(COLOUR[0]).save(stream, "GIF")
    for bad in (b"", b"no image", good[:60], stream.getvalue()):
        file = write_parquet(folder / "train.parquet", [good, bad], [0, 3])
        line = refused(folder)
        assert str(file) in line and "image in row 1 cannot be decoded" in line
    write_parquet(folder / "train.parquet", [good, None], [0, 3])
    assert "row 1 holds no bytes" in refused(folder)


def test_images_of_several_sizes(folder: Path) -> None:
    images = [encode(COLOUR[0]), encode(COLOUR[0]), encode(COLOUR[0, :5]), encode(COLOUR[0, :4])]
    file = write_parquet(folder / "train.parquet", images, [0, 1, 2, 3])
    line = refused(folder)
    assert str(file) in line and "row 2 has shape (3, 5, 8), but the first one has (3, 6, 8)" in line
    write_parquet(folder / "train.parquet", [encode(COLOUR[0, :5])], [3])
    assert "data: samples must have one shape" in refused(folder)


def test_grey_among_colour(folder: Path) -> None:
    write_parquet(folder / "train.parquet", [encode(COLOUR[0]), encode(GREY[0])], [0, 3])
    assert "see data.channels" in refused(folder)
    assert np.array_equal(Parquet(root=str(folder), channels=3).load().train.inputs[1, 2], GREY[0])


def test_wrong_labels(folder: Path) -> None:
    images = [encode(COLOUR[0])] * 2
    file = write_parquet(folder / "test.parquet", images, [0, -1])
    line = refused(folder)
    assert str(file) in line and "label -1 in row 1; allowed are 0 to 3" in line
    write_parquet(folder / "test.parquet", images, [0, 4])
    assert "label 4 in row 1; allowed are 0 to 3" in refused(folder)
    assert Parquet(root=str(folder), classes=5).load().classes == 5
    assert "data.classes=2" in refused(folder, classes=2)
    write_parquet(folder / "test.parquet", images, [0, None])
    assert "1 rows have no label" in refused(folder)
    images = pq.read_table(file).column("image").slice(0, 1)
    pq.write_table(pa.table({"image": images, "label": ["cat"]}), file)
    line = refused(folder)
    assert "must mean the same in every file" in line and f"{file} has text" in line


def test_image_column_of_another_kind(folder: Path) -> None:
    file = folder / "train.parquet"
    pq.write_table(pa.table({"image": [b"bytes"], "label": [3]}), file)
    line = refused(folder)
    assert str(file) in line and "must be a struct of bytes and path, or lists of numbers, not binary" in line


def test_an_empty_file(folder: Path) -> None:
    write_parquet(folder / "test.parquet", [], [])
    assert "test split is empty" in refused(folder)


@pytest.mark.parametrize(
    ("field", "value"),
    [("root", None), ("classes", 1), ("classes", "10"), ("label", 3), ("inputs", 3), ("channels", 2)],
)
def test_wrong_fields(tmp_path: Path, field: str, value: object) -> None:
    with pytest.raises(InputError, match=rf"data\.{field}={value}: must be"):
        Parquet(**{"root": str(tmp_path), field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "channels", "shape", "classes"),
    [
        ("mnist", 1, (1, 28, 28), 10),
        ("cifar10", None, (3, 32, 32), 10),
        ("cifar100", None, (3, 32, 32), 100),
    ],
)
def test_real_data(name: str, channels: int | None, shape: tuple[int, ...], classes: int) -> None:
    if not (SHARED / name).is_dir():
        pytest.skip(f"{SHARED / name} is not here")
    data = Parquet(root=str(SHARED / name), channels=channels, train_samples=300, test_samples=100).load()
    assert (data.shape, data.classes, len(data.train), len(data.test)) == (shape, classes, 300, 100)
    assert 20 < data.train.inputs.mean() < 140


# a folder is not taken as it lies


def shards(folder: Path, *names: str) -> Path:
    """Each file holds one grey image, whose level is the file's place in the list, and that as its label."""
    for level, name in enumerate(names):
        write_parquet(folder / name, [encode(np.full((4, 4), level, np.uint8))], [level])
    return folder


def levels(folder: Path, **fields: object) -> tuple[list[int], list[int]]:
    data = Parquet(root=str(folder), **fields).load()  # type: ignore[arg-type]
    return data.train.labels.tolist(), data.test.labels.tolist()


HASH, TWO = "-0a1b2c3d4e5f6071", ("train-00000-of-00002", "train-00001-of-00002")


@pytest.mark.parametrize(
    "names",
    [
        ["train-00000-of-00003", "train-00001-of-00003", "train-00002-of-00003"],
        [f"data/train-00000-of-00002{HASH}", f"data/train-00001-of-00002{HASH}"],
        ["train-0", "train-1", "train-2"],
        ["train_1", "train_2"],
        [*(f"train{number}" for number in range(12))],  # 10 comes after 9
        ["train"],
        ["train", "train_extra", "train-corrupted-00000-of-00001"],
    ],
)
def test_shards_are_read_in_the_order_of_their_numbers(tmp_path: Path, names: list[str]) -> None:
    shards(tmp_path, *(f"{name}.parquet" for name in names), "test.parquet", "test_hard.parquet")
    own = [place for place, name in enumerate(names) if "extra" not in name and "corrupted" not in name]
    assert levels(tmp_path, classes=99) == (own, [len(names)])


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["train-00000-of-00003", "train-00002-of-00003"], "train-00001-of-00003.parquet is missing"),
        (["train-00001-of-00002"], "train-00000-of-00002.parquet is missing"),
        (["train-00005-of-00001"], "train-00000-of-00001.parquet is missing"),
        (["train-0", "train-2"], "train-1.parquet is missing"),
        ([f"train-00000-of-00001{HASH}", *TWO], f"00001{HASH}.parquet and"),
        ([f"train-00000-of-00002{HASH}", *TWO], "not shards of one set"),
        (["train", "train-00000-of-00001"], "train.parquet and"),
        (["train", "data/train"], "not shards of one set"),
        (["train-1", "train_1"], "not shards of one set"),
        (["training"], "there are the splits test, training: set data.splits"),
    ],
)
def test_missing_and_stale_shards_are_refused_by_name(tmp_path: Path, names: list[str], says: str) -> None:
    shards(tmp_path, *(f"{name}.parquet" for name in names), "test.parquet")
    assert says in refused(tmp_path, classes=99)


def test_splits_are_chosen_by_name(tmp_path: Path) -> None:
    names = ("train.parquet", "validation.parquet", "test.parquet", "train_extra.parquet")
    shards(tmp_path, *names)
    assert levels(tmp_path, classes=9) == ([0], [2])
    assert levels(tmp_path, classes=9, splits={"test": "validation"}) == ([0], [1])
    assert levels(tmp_path, classes=9, splits={"train": "train_extra", "test": "train"}) == ([3], [0])
    assert "must hold dev.parquet" in refused(tmp_path, splits={"test": "dev"})
    assert "data.splits={'dev': 'test'}: must be" in refused(tmp_path, splits={"dev": "test"})
    write_parquet(tmp_path / "test.parquet", [encode(GREY[0])], [-1])
    assert "takes another split" in refused(tmp_path)


def test_the_names_of_a_class_label_count(tmp_path: Path) -> None:
    feature = {"info": {"features": {"label": {"names": list("abcdefghij"), "_type": "ClassLabel"}}}}
    for part in ("train", "test"):
        write_parquet(tmp_path / f"{part}.parquet", [encode(image) for image in GREY[:3]], [0, 1, 2])
        table = pq.read_table(tmp_path / f"{part}.parquet")
        table = table.replace_schema_metadata({"huggingface": json.dumps(feature)})
        pq.write_table(table, tmp_path / f"{part}.parquet")
    assert Parquet(root=str(tmp_path)).load().classes == 10
    assert Parquet(root=str(tmp_path), classes=4).load().classes == 4
    feature["info"]["features"]["label"]["names"].pop()
    pq.write_table(
        table.replace_schema_metadata({"huggingface": json.dumps(feature)}), tmp_path / "test.parquet"
    )
    assert "names 9 classes" in refused(tmp_path)


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    table = pq.read_table(write_parquet(tmp_path / "train.parquet", [encode(GREY[0])], [0]))
    pq.write_table(table.append_column("label", pa.array([1])), tmp_path / "train.parquet")
    write_parquet(tmp_path / "test.parquet", [encode(GREY[0])], [0])
    assert "must have one column label, not 2" in refused(tmp_path)


# decoding loses nothing without a word


def picture(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def decoded(folder: Path, content: bytes, **fields: object) -> np.ndarray:
    for part in ("train", "test"):
        write_parquet(folder / f"{part}.parquet", [content, content], [0, 1])
    return Parquet(root=str(folder), **fields).load().train.inputs[0]  # type: ignore[arg-type]


def test_sixteen_bits_are_scaled_to_eight(tmp_path: Path) -> None:
    deep = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    for channels in (None, 1):
        found = decoded(tmp_path, picture(Image.fromarray(deep)), channels=channels)
        assert np.array_equal(found[0], (deep >> 8).astype(np.uint8))
    assert np.array_equal(decoded(tmp_path, picture(Image.fromarray(deep)), channels=3)[2], found[0])


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_images_are_turned_upright(tmp_path: Path, kind: str) -> None:
    half = np.zeros((8, 16, 3), np.uint8)
    half[:, 8:] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    found = decoded(tmp_path, picture(Image.fromarray(half), kind, exif=exif.tobytes()))
    assert found.shape == (1, 16, 8) and found[:, :7].max() < 30 and found[:, 9:].min() > 225


def test_transparency_is_refused_where_it_shows(tmp_path: Path) -> None:
    alpha = np.dstack([COLOUR[0], np.full((6, 8), 255, np.uint8)])
    assert np.array_equal(decoded(tmp_path, picture(Image.fromarray(alpha))), COLOUR[0].transpose(2, 0, 1))
    alpha[0, 0, 3] = 254
    decode = [picture(Image.fromarray(alpha)), picture(Image.fromarray(alpha), "WEBP", lossless=True)]
    palette = Image.fromarray(COLOUR[0]).quantize(8)
    decode += [picture(palette, transparency=int(np.asarray(palette)[0, 0]))]
    for content in decode:
        with pytest.raises(InputError, match=r"train\.parquet: the image in row 0 is transparent in places"):
            decoded(tmp_path, content)


def test_palettes_one_bit_and_cmyk_are_what_pillow_shows(tmp_path: Path) -> None:
    palette = Image.fromarray(COLOUR[0]).quantize(8)
    expected = np.asarray(palette.convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(decoded(tmp_path, picture(palette)), expected)
    bit = Image.fromarray(GREY[0] > 127)
    assert np.array_equal(decoded(tmp_path, picture(bit))[0], np.where(GREY[0] > 127, 255, 0))
    printed = Image.fromarray(COLOUR[0]).convert("CMYK")
    assert decoded(tmp_path, picture(printed, "JPEG")).shape == (3, 6, 8)


def test_moving_pictures_are_refused(tmp_path: Path) -> None:
    frames = [Image.fromarray(image) for image in COLOUR[:3]]
    content = picture(frames[0], "WEBP", save_all=True, append_images=frames[1:])
    with pytest.raises(InputError, match="the image in row 0 has 3 frames"):
        decoded(tmp_path, content)


@pytest.mark.parametrize("memory", [None, 0])
def test_grey_images_kept_as_colour_are_one_channel(tmp_path, monkeypatch, memory):
    """As they say themselves, from the first to the last; one colour further on, and all are colour."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    random = np.random.default_rng(0)
    grey = [random.integers(0, 256, (5, 6), np.uint8) for _ in range(70)]
    stored = [encode(np.repeat(image[..., None], 3, axis=2), "WEBP") for image in grey]
    for part in ("train", "test"):
        write_parquet(tmp_path / f"{part}.parquet", stored, [0, 1] * 35)
    source = Parquet(root=str(tmp_path), memory_gib=memory)
    data = source.load()
    assert data.shape == (1, 5, 6) and len(source.notes) == 1 and "grey" in source.notes[0]
    np.testing.assert_array_equal(data.train.inputs[:, 0], grey)
    assert Parquet(root=str(tmp_path), channels=1).load().test.digest == data.test.digest
    assert Parquet(root=str(tmp_path), channels=3).load().shape == (3, 5, 6)
    coloured = encode(random.integers(0, 256, (5, 6, 3), np.uint8), "WEBP")
    write_parquet(tmp_path / "test.parquet", [*stored[:-1], coloured], [0, 1] * 35)
    source = Parquet(root=str(tmp_path), memory_gib=memory)
    assert source.load().shape == (3, 5, 6) and not source.notes
