r"""Imports the frames and alignments of a Kaldi experiment, such as TIMIT's recipe s5, for `data=timit`:

    python -m lbdist.data.kaldi features=data-fmllr-tri3/train labels=exp/tri3_ali/pdf.scp \
        held_out=0.3 out=timit

Keys:
    features       a Kaldi data folder (feats.scp in it), or an scp, ark or ark.gz file
    labels         alignments as pdf ids, an scp, ark or ark.gz file, binary or text; in exp/tri3_ali:
                   ali-to-pdf final.mdl "ark:gunzip -c ali.*.gz|" ark,scp:pdf.ark,pdf.scp
    test_features  the same of the test split
    test_labels
    held_out       or the share of the utterances that are the test split; speakers may be in both
    out            the folder to write, or its URI
    root           the folder that Kaldi ran in, where paths in an scp start (.)
    dimension      numbers in a frame (40)
    classes        number of pdfs (the largest id that occurs, and one)
    cmvn           mean or variance: what features have not been normalised by yet, from the data folder's
                   cmvn.scp and utt2spk; null (as for fMLLR features) leaves them as they are
    missing        refuse (an utterance that lacks frames or alignment) or skip

All is checked before anything is written. Memory holds a shard of utterances at a time, and the same command
again goes on where it was ended.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from lbdist.config.build import build
from lbdist.data.base import is_integer, subset
from lbdist.data.frames import MANIFEST, SCHEMA, digest_of, read_shard
from lbdist.data.kaldi_archive import Archive
from lbdist.errors import InputError, one_line, require, warn
from lbdist.storage import Damaged, Store, digest, read_json, stamp, write_json

UTTERANCES = 256
"""Of a shard: some 12 MB of frames in TIMIT."""


@dataclass
class _Utterances:
    """Frames and labels of a split's utterances, checked as they are read.

    Attributes:
        features: The frames.
        labels: The alignments.
        normalise: What is made of an utterance's frames, given its name.
        files: All files that these three come from.
        names: The utterances, sorted.
        dimension: Numbers that a frame must have.
        classes: Labels must be below; None for any.
    """

    features: Archive
    labels: Archive
    normalise: Callable[[str, np.ndarray], np.ndarray]
    files: set[Path]
    names: list[str]
    dimension: int
    classes: int | None

    def __getitem__(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Frames (n, d), float32, and labels (n,), int32."""
        frames, labels = self.features[name], self.labels[name]
        of_frames = f"{self.features.key}: {self.features.file}: {name}"
        of_labels = f"{self.labels.key}: {self.labels.file}: {name}"
        if frames.ndim != 2 or frames.shape[1] != self.dimension:
            shape = f"{frames.shape[1]} numbers per frame" if frames.ndim == 2 else f"shape {frames.shape}"
            raise InputError(f"{of_frames} has {shape}; must have {self.dimension} (dimension=)")
        if labels.ndim != 1 or labels.dtype.kind != "i":
            raise InputError(f"{of_labels} must be whole numbers, one per frame, as ali-to-pdf writes them")
        if len(frames) != len(labels) or not len(frames):
            raise InputError(f"{of_labels} has {len(labels)} labels for {len(frames)} frames")
        highest = self.classes or np.inf
        if labels.min() < 0 or labels.max() >= highest:
            wrong = labels[(labels < 0) | (labels >= highest)][0]
            allowed = "0 or more" if self.classes is None else f"0 to {self.classes - 1}"
            raise InputError(f"{of_labels} has the label {wrong}; allowed are {allowed} (classes=)")
        frames = self.normalise(name, frames.astype(np.float32))
        if not np.isfinite(frames).all():
            raise InputError(f"{of_frames} has numbers that are not finite")
        return frames, labels.astype(np.int32)

    def shards(self) -> list[list[str]]:
        """The utterances of each shard."""
        return [self.names[at : at + UTTERANCES] for at in range(0, len(self.names), UTTERANCES)]

    def table(self, names: list[str]) -> pa.Table:
        """The Parquet table of a shard's utterances."""
        read = [self[name] for name in names]
        columns = [names, [frames.reshape(-1) for frames, _ in read], [labels for _, labels in read]]
        arrays = [pa.array(column, kind) for column, kind in zip(columns, SCHEMA.types, strict=True)]
        return pa.Table.from_arrays(arrays, schema=SCHEMA)


@dataclass
class Import:
    """One import; its attributes are the keys of the command, which the module's text tells."""

    features: str | None = None
    labels: str | None = None
    test_features: str | None = None
    test_labels: str | None = None
    held_out: float | None = None
    out: str | None = None
    root: str = "."
    dimension: int = 40
    classes: int | None = None
    cmvn: str | None = None
    missing: str = "refuse"

    def __post_init__(self) -> None:
        for key in ("features", "labels", "out"):
            require(getattr(self, key) is not None, key, None, "given; --help tells the keys")
        pair = (self.test_features is None) == (self.test_labels is None)
        require(pair, "test_labels", self.test_labels, "given with test_features, and not alone")
        share, other = self.held_out, self.test_features
        wanted = "given with test_labels, or held_out instead of both"
        require((share is None) != (other is None), "test_features", other, wanted)
        require(share is None or 0 < share < 1, "held_out", share, "above 0 and below 1")
        require(is_integer(self.dimension, 1), "dimension", self.dimension, "at least 1")
        require(self.classes is None or self.classes > 1, "classes", self.classes, "at least 2, or null")
        known = self.cmvn in (None, "mean", "variance")
        require(known, "cmvn", self.cmvn, "mean, variance or null")
        require(self.missing in ("refuse", "skip"), "missing", self.missing, "refuse or skip")

    def run(self) -> dict[str, Any]:
        """Checks everything, then writes the shards that are not there yet, and the manifest.

        Returns:
            The manifest: `dimension`, `classes`, and for each split its `utterances`, `frames` and `shards`.

        Raises:
            InputError: Something is wrong, missing or damaged; nothing has been written.
        """
        splits, left_out = self._splits()
        files = set[Path]().union(*(part.files for part in splits.values()))
        sources = {str(file): [(s := file.stat()).st_size, s.st_mtime_ns] for file in files}
        settings = dataclasses.asdict(self)
        settings.pop("out")
        mark = digest(json.dumps([settings, sources], sort_keys=True).encode())
        folder = Store(str(self.out))
        folder.check()
        self._refuse_another(folder, mark)
        frames, highest = {}, 0
        for part, utterances in splits.items():
            frames[part] = 0
            for name in utterances.names:
                labels = utterances[name][1]
                frames[part] += len(labels)
                highest = max(highest, int(labels.max()))
            print(f"{part}: {len(utterances.names):,} utterances, {frames[part]:,} frames", flush=True)
        content: dict[str, Any] = {
            "dimension": self.dimension,
            "classes": self.classes or highest + 1,
            "splits": {},
            "left_out": left_out,
            "import": mark,
            "settings": settings,
            "versions": {name: metadata.version(name) for name in ("lbdist", "kaldiio", "numpy", "pyarrow")},
        }
        for part, utterances in splits.items():
            shards = []
            for number, names in enumerate(utterances.shards()):
                shard = f"{part}-{number:05d}.parquet"
                known = _intact(folder, shard, mark) or _write(folder, shard, utterances.table(names), mark)
                shards.append({"name": shard, "utterances": len(names), "digest": known})
            content["splits"][part] = {
                "utterances": len(utterances.names),
                "frames": frames[part],
                "shards": shards,
            }
        write_json(folder, MANIFEST, content)
        print(f"{folder}/{MANIFEST}: frames of {self.dimension} numbers in {content['classes']:,} classes")
        return content

    def _splits(self) -> tuple[dict[str, _Utterances], list[str]]:
        """The utterances of each split, and those of either that have no frames or no labels."""
        train, left_out = self._utterances("")
        if self.test_features is not None:
            test, lacking = self._utterances("test_")
            both = sorted(set(train.names) & set(test.names))
            if both:
                raise InputError(
                    f"test_features: {test.features.file}: {both[0]} is in the training split too"
                )
            return {"train": train, "test": test}, left_out + lacking
        assert self.held_out is not None
        total = len(train.names)
        require(total > 1, "features", self.features, "at least 2 utterances, to hold some out")
        held = set(subset(total, min(max(round(self.held_out * total), 1), total - 1)).tolist())
        test = dataclasses.replace(train, names=[n for at, n in enumerate(train.names) if at in held])
        train = dataclasses.replace(train, names=[n for at, n in enumerate(train.names) if at not in held])
        return {"train": train, "test": test}, left_out

    def _utterances(self, prefix: str) -> tuple[_Utterances, list[str]]:
        root = Path(self.root).expanduser()
        given = Path(getattr(self, f"{prefix}features")).expanduser()
        file = given / "feats.scp" if given.is_dir() else given
        features = Archive(f"{prefix}features", file, root)
        labels = Archive(f"{prefix}labels", Path(getattr(self, f"{prefix}labels")).expanduser(), root)
        names = sorted(features.places.keys() & labels.places.keys())
        lacking = sorted(features.places.keys() ^ labels.places.keys())
        if lacking and self.missing == "refuse":
            one, other = (labels, "alignment") if lacking[0] in features.places else (features, "frames")
            raise InputError(
                f"{one.key}: {one.file}: {lacking[0]} has no {other}, and {len(lacking) - 1} others lack "
                "frames or alignment; missing=skip leaves them out"
            )
        if not names:
            raise InputError(f"{labels.key}: {labels.file}: must have utterances of {file}")
        normalise, used = self._normaliser(features.key, given, root)
        files = features.files() | labels.files() | used
        return _Utterances(features, labels, normalise, files, names, self.dimension, self.classes), lacking

    def _normaliser(
        self, key: str, given: Path, root: Path
    ) -> tuple[Callable[[str, np.ndarray], np.ndarray], set[Path]]:
        """Kaldi's mean and variance normalisation by speaker, as `apply-cmvn` does it, and its files."""
        if self.cmvn is None:
            return lambda name, frames: frames, set()
        require(given.is_dir(), key, given, "a data folder with cmvn.scp and utt2spk in it, for cmvn")
        statistics = Archive(key, given / "cmvn.scp", root)
        listed = given / "utt2spk"
        require(listed.is_file(), key, listed, "a file that is there, for cmvn")
        pairs = [line.split() for line in listed.read_text(errors="replace").splitlines()]
        speakers = {pair[0]: pair[1] for pair in pairs if len(pair) == 2}

        def normalised(name: str, frames: np.ndarray) -> np.ndarray:
            speaker = speakers.get(name)
            if speaker is None or speaker not in statistics.places:
                raise InputError(f"{key}: {given}: cmvn.scp and utt2spk have no statistics for {name}")
            sums = statistics[speaker]  # sums and count; sums of squares
            if sums.shape != (2, frames.shape[1] + 1) or sums[0, -1] <= 0:
                raise InputError(f"{key}: {statistics.file}: {speaker} must be of 2 x {frames.shape[1] + 1}")
            mean, square = sums[:, :-1] / sums[0, -1]
            deviation = np.sqrt(np.maximum(square - mean**2, 1e-20)) if self.cmvn == "variance" else 1
            return ((frames - mean) / deviation).astype(np.float32)

        return normalised, {*statistics.files(), listed}

    def _refuse_another(self, folder: Store, mark: str) -> None:
        """What is there already must be of this import."""
        found = [name for name in folder.names() if re.fullmatch(r"(train|test)-\d+\.parquet", name)]
        try:
            marks = {read_json(folder, MANIFEST)["import"]}
        except (FileNotFoundError, Damaged):
            marks = set()
        for name in found:
            try:
                marks.add(_mark(read_shard(folder, name, ["utterance"]))["import"])
            except Damaged:
                continue  # and written anew
        require(marks <= {mark}, "out", folder, "a folder without an import of something else in it")


def _mark(table: pa.Table) -> dict[str, Any]:
    """What a shard says of itself: `import` and its stamp."""
    found = json.loads((table.schema.metadata or {}).get(b"lbdist", b"null"))
    return found if isinstance(found, dict) else {"import": ""}


def _intact(folder: Store, name: str, mark: str) -> str | None:
    """A shard's digest, where it is there, whole and of this import."""
    try:
        table = read_shard(folder, name)
    except (FileNotFoundError, Damaged):
        return None
    known = digest_of(table)
    return known if _mark(table) == {"import": mark, **stamp(name, known)} else None


def _write(folder: Store, name: str, table: pa.Table, mark: str) -> str:
    known = digest_of(table)
    said = {"import": mark, **stamp(name, known)}
    stamped = table.replace_schema_metadata({"lbdist": json.dumps(said)})
    sink = pa.BufferOutputStream()
    pq.write_table(stamped, sink, compression="zstd")
    folder.write(name, sink.getvalue().to_pybytes())
    return known


def _values(arguments: Sequence[str]) -> dict[str, Any]:
    """What the command line says of each key, as YAML reads it: `null` is nothing."""
    values: dict[str, Any] = {}
    for text in arguments:
        key, mark, value = text.partition("=")
        if not mark:
            raise InputError(f"{text}: must be KEY=VALUE or --help")
        try:
            values[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise InputError(f"{key}={value}: must be one value ({one_line(error)})") from error
    return values


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        arguments: The command line without the program's name.

    Returns:
        0 when the import is whole, 1 when the disk failed, 2 for a wrong input, 130 after Ctrl-C.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or {"--help", "-h"} & set(given):
        print(__doc__)
        return 0
    again = "the same command again goes on where it ended"
    try:
        try:
            import kaldiio  # noqa: F401
        except ImportError as error:
            raise InputError("kaldiio is not installed: pip install 'lbdist[kaldi]'") from error
        build({**_values(given), "_target_": f"{Import.__module__}.Import"}, "kaldi", kind=Import).run()
    except InputError as error:
        warn(one_line(error).removeprefix("kaldi."))
        return 2
    except OSError as error:
        warn(f"{one_line(error)}; {again}")
        return 1
    except KeyboardInterrupt:
        warn(f"interrupted; {again}")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
