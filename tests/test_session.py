"""What a session says: failures by kind, other code, workers that there are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from lbdist.capacity import Capacity
from lbdist.config.compose import compose_parts
from lbdist.errors import InputError
from lbdist.prepare import prepare
from lbdist.serial import SerialSession
from lbdist.session import _by_kind
from lbdist.studies.base import cells_of, whole
from tests.support.commands import UNMEASURED
from tests.support.plans import make_study


def session(storage: Path, *words: str) -> SerialSession:
    words = (*UNMEASURED, f"storage={storage}", "executor=serial", *words)
    found = prepare(*compose_parts(words))
    assert isinstance(found, SerialSession)
    return found


def test_failures_are_told_by_kind_with_their_seeds_and_the_first_reason() -> None:
    study = make_study("experiment=gap", "study.equal_loss=null", "seeds=3")
    cells = [cell for cell in cells_of(study, whole(study)).values() if cell.method == "SB"]
    told = _by_kind([(cell, f"reason {place}") for place, cell in enumerate(cells)])
    assert told == ["SB seed 0, 1, 2: reason 0"]
    assert _by_kind([("a.pt", "no"), (cells[1], "")]) == ["a.pt: no", "SB seed 1"]


def test_what_is_to_do_is_what_has_no_rows(tmp_path: Path, cache: str) -> None:
    from lbdist.tuning.book import Book

    words = ["experiment=gap", "study.equal_loss=null", "measure=[distance]", cache]
    made = session(tmp_path, *words)
    book = Book(made.store)
    assert len(made.unfinished(book)) == 2 and made.missing(book) == []
    assert made.run("command") == 0
    book = Book(made.store)
    assert made.unfinished(book) == [] and made.missing(book) == []
    assert len(list(made.study.measurements(book))) == 2
    (file,) = list((tmp_path / "measurements").glob("*.parquet"))[:1]
    file.unlink()
    assert len(made.missing(Book(made.store))) == 1


def test_cells_take_longer_with_their_gradients_and_samples(tmp_path: Path, cache: str) -> None:
    made = session(tmp_path, "experiment=gap", "study.equal_loss=null", cache)
    weights = {cell.method: made.weight(cell) for cell in made.cells.values()}
    steps = {"SB": 4 * 13, "LB": 4 * 10}  # 400 samples by 32 and by 40, in 4 epochs
    assert weights == {name: 64 * count + 4 * 400 for name, count in steps.items()}


def test_more_workers_than_there_are_and_tf32_without_a_gpu_are_refused(tmp_path: Path, cache: str) -> None:
    made = session(tmp_path, "experiment=gap", "study.equal_loss=null", "num_workers=3", cache)
    made.check_workers(Capacity(3, 0))
    with pytest.raises(InputError, match=r"^num_workers=3: must be at most 2, since executor=serial"):
        made.check_workers(Capacity(2, 0))
    made = session(tmp_path, "experiment=gap", "study.equal_loss=null", "precision=tf32", cache)
    with pytest.raises(InputError, match=r"^precision=tf32: must be float32, bfloat16 or auto"):
        made.check_workers(Capacity(2, 0))
    made.check_workers(Capacity(2, 1))


def test_remedies_that_tokens_cannot_have_are_left_out_by_a_line(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    source = "# tokens\n_target_: tests.support.sources.Sentences\nname: sentences\n"
    (tmp_path / "data" / "mine.yaml").write_text(source + "train_samples: null\ntest_samples: null\n")
    (tmp_path / "network").mkdir()
    network = "# bag\n_target_: tests.support.sources.Bag\nname: bag\n"
    (tmp_path / "network" / "mine.yaml").write_text(network)
    words = ["experiment=remedies", "remedy=all", "combinations=[[augmentation,robust],[robust,growth]]"]
    words += ["data=mine", "network=mine", "measure=[]", "epochs=2", "small_batch=8", "executor=serial"]
    words += ["study.check_workers=null", "study.check_precision=null", f"storage={tmp_path / 's'}"]
    made = prepare(*compose_parts(words, [tmp_path]))
    kinds = {cell.remedy for cell in made.cells.values()}
    assert kinds == {"none", "conservative", "robust", "growth", "robust+growth"}
    assert [note.partition(":")[0] for note in made.notes] == [
        "remedy adversarial is left out", "remedy augmentation is left out",
    ]  # fmt: skip
    assert made.run("command") == 0
