"""Where results lie: a folder of files, local or in an object store, written whole or not at all.

Names are relative, with `/` between folders. What holds of a store, on which everything else is built:

- **A write is whole or does not happen.** Who reads a name gets all that one write gave, or
  `FileNotFoundError`; a second write replaces the first. A local folder is written aside and renamed; an
  object store shows an object once its upload is complete; any other file system is written aside and
  moved, which is as good as its move. `durable` writes wait for a local disk.
- **Anyone may read at any time**, without a lock, and sees what is written from then on; `names` lists
  whole files alone. A study's folder is written by the holder of its lock. `cells/` and `measurements/` are
  written by any study, as two that write one name write the same rows: the worst is work done twice.
- **A crash leaves** what was written whole, and at most: a file that was being written aside (`.NAME.HEX`),
  which nothing reads; the resume file of a cell, from which it goes on; empty folders. A local lock goes
  with its process, a lease ends `LEASE_SECONDS` after its holder. Nothing has to be repaired before the
  next run.
- **Damage is noticed.** Files carry a stamp: which file it is, its format, its digest. One that differs is
  `Damaged` and counts as missing; who finds it sets it aside under another name, and what it held is
  computed again.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import fs

from lbdist.errors import InputError, one_line, require, warn
from lbdist.processes import without_keys

_OBJECT_STORES = ("s3", "gcs", "abfs")
FORMAT = 1
"""Of every file that carries a stamp; files of another are as good as damaged."""

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""Errors of a file system that takes nothing more."""

LEASE_SECONDS = 60.0
"""How long a lease outlives its holder, where the file system has no lock."""


Version = tuple[int, int | None]
"""What changes with a file: its size in bytes, and when it was written, in nanoseconds."""


class Damaged(InputError):
    """A file that is not what was written there: cut, garbled, of another format, or another file."""


def digest(content: bytes | memoryview) -> str:
    """The SHA-256 of a file's content, in hex digits."""
    return hashlib.sha256(content).hexdigest()


def stamp(what: str, digest: str) -> dict[str, Any]:
    """What a file says of itself: which it is, in which format, and the digest of its content."""
    return {"is": what, "format": FORMAT, "digest": digest}


def check_stamp(found: Any, what: str, digest: str, where: str) -> None:
    """Holds a file's stamp against what was asked for and what was read.

    Raises:
        Damaged: They differ.
    """
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise Damaged(f"{where} is of another format")
    if found.get("is") != what:
        raise Damaged(f"{where} is the file of {found.get('is')}, not of {what}")
    if found.get("digest") != digest:
        raise Damaged(f"{where} is not as it was written")


def stamped(what: str, content: bytes | memoryview) -> bytes:
    """Content after a line that says what it is."""
    return b"\n".join([json.dumps(stamp(what, digest(content))).encode(), content])


def unstamped(content: bytes, what: str, where: str) -> bytes:
    """The content that `stamped` took.

    Raises:
        Damaged: It is not.
    """
    line, _, found = content.partition(b"\n")
    try:
        mark = json.loads(line)
    except ValueError as error:
        raise Damaged(f"{where} does not say what it is") from error
    check_stamp(mark, what, digest(found), where)
    return found


def _remove_empty(folders: Sequence[Path]) -> None:
    """Removes folders, the innermost first, as far as there is nothing in them."""
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


class Store:
    """A folder that any process of a study opens by its root alone; it can be pickled.

    Args:
        root: A local folder, or a URI that pyarrow opens: `s3://bucket/folder`, `gs://...`, `file:///...`.

    Attributes:
        root: As given, without keys (`processes.without_keys`), a local folder made absolute.
        filesystem: pyarrow's file system.
        path: The folder in it.
        local: The folder where it is local, else None.

    Raises:
        InputError: pyarrow cannot open the URI.

    Example:
        >>> import tempfile
        >>> store = Store(tempfile.mkdtemp())
        >>> store.write("cells/a/rows", b"1"), store.names("cells"), store.read("cells/a/rows")
        (None, ['cells/a/rows'], b'1')
    """

    def __init__(self, root: str | Path) -> None:
        self.root = without_keys(str(root))
        if "://" not in self.root:
            self.root = str(Path(self.root).expanduser().resolve())
            self.filesystem, self.path = fs.LocalFileSystem(), self.root
        else:
            try:
                self.filesystem, self.path = fs.FileSystem.from_uri(self.root)
            except (pa.ArrowException, OSError, ValueError) as error:
                why = one_line(error).replace(self.root, str(self))
                allowed = f"a folder, or a URI that pyarrow opens ({why})"
                raise InputError(f"storage={self}: must be {allowed}") from error
            require(bool(self.path.strip("/")), "storage", self, "a URI with a bucket or folder in it")
        self.local = Path(self.path) if self.filesystem.type_name == "local" else None

    @classmethod
    def of(cls, place: str | Path | Store) -> Store:
        """A store as it is, or the one of a folder or URI."""
        return place if isinstance(place, Store) else cls(place)

    def __truediv__(self, name: str) -> Store:
        """The store of a folder in this one."""
        below = object.__new__(Store)
        head, mark, query = self.root.partition("?")
        below.root, below.filesystem = f"{head.rstrip('/')}/{name}{mark}{query}", self.filesystem
        below.path = f"{self.path}/{name}"
        below.local = None if self.local is None else self.local / name
        return below

    def __str__(self) -> str:
        """The root without options, as people and messages see it."""
        return self.root.partition("?")[0]

    def check(self) -> None:
        """Refuses a place that could not be read, made or written in; nothing is written.

        Raises:
            InputError: It is a file, its place may not be written to, or the object store refuses us.
        """
        if self.local is None:
            try:
                self.filesystem.get_file_info(self.path)
            except OSError as error:
                why = one_line(error)[:300]
                raise InputError(f"storage={self}: must be a place that can be read ({why})") from error
            return
        if "runtime_resources" in self.local.parts:  # where Ray unpacks what a job brings along
            raise InputError(
                f"storage={self}: must not lie in the job's working directory, which Ray deletes; take an "
                "absolute path, or a URI such as s3://bucket/folder"
            )
        place = next(path for path in (self.local, *self.local.parents) if path.exists())
        good = place.is_dir() and os.access(place, os.W_OK | os.X_OK)
        require(good, "storage", self, f"a folder to write in ({place} is not)")

    def read(self, name: str) -> bytes:
        """A file's content.

        Raises:
            FileNotFoundError: There is no such file.
            Damaged: There is something else.
        """
        if self.local is not None:
            try:
                return (self.local / name).read_bytes()
            except (IsADirectoryError, NotADirectoryError) as error:
                raise Damaged(f"{self}/{name} is no file") from error
        with self.filesystem.open_input_stream(f"{self.path}/{name}") as file:
            return bytes(file.read())

    def write(self, name: str, content: bytes, *, durable: bool = True) -> None:
        """Writes a file whole or not at all.

        Args:
            name: The file; its folder is made.
            content: All of it.
            durable: Waits until a local disk has it, against a loss of power.
        """
        content = memoryview(content)  # type: ignore[assignment]
        folder, _, last = f"{self.path}/{name}".rpartition("/")
        aside = f"{folder}/.{last}.{uuid.uuid4().hex}"
        if self.local is not None:
            self._clear_way(name)
            Path(folder).mkdir(parents=True, exist_ok=True)
            try:
                with Path(aside).open("wb") as file:
                    file.write(content)
                    if durable:
                        file.flush()
                        os.fsync(file.fileno())
                Path(aside).replace(f"{folder}/{last}")
            finally:
                Path(aside).unlink(missing_ok=True)
        elif self.filesystem.type_name in _OBJECT_STORES:
            with self.filesystem.open_output_stream(f"{folder}/{last}") as stream:
                stream.write(content)
        else:
            self.filesystem.create_dir(folder, recursive=True)
            with self.filesystem.open_output_stream(aside) as stream:
                stream.write(content)
            self.filesystem.move(aside, f"{folder}/{last}")

    def _clear_way(self, name: str) -> None:
        """Sets aside a file where a folder has to be, and a folder where the file has to be."""
        assert self.local is not None
        folders = name.split("/")
        for depth in range(1, len(folders)):
            part = "/".join(folders[:depth])
            if (self.local / part).is_file():
                warn(f"{self}/{part} is no folder; set aside as {self.set_aside(part)}")
        if (self.local / name).is_dir():
            warn(f"{self}/{name} is no file; set aside as {self.set_aside(name)}")

    def set_aside(self, name: str) -> str:
        """Renames what is in the way, or damaged, to a name that says so, and returns that."""
        number = 1
        while self._kind(f"{name}.damaged-{number}") != fs.FileType.NotFound:
            number += 1
        self.filesystem.move(f"{self.path}/{name}", f"{self.path}/{name}.damaged-{number}")
        return f"{name}.damaged-{number}"

    def _kind(self, name: str) -> fs.FileType:
        return self.filesystem.get_file_info(f"{self.path}/{name}").type

    def names(self, prefix: str = "") -> list[str]:
        """The files below a folder, sorted; files that are being written aside are not among them."""
        return sorted(self.versions(prefix))

    def versions(self, prefix: str = "") -> dict[str, Version]:
        """The files below a folder, each with its version."""
        below = f"{self.path}/{prefix}".rstrip("/")
        selector = fs.FileSelector(below, recursive=True, allow_not_found=True)
        start = len(self.path.rstrip("/")) + 1
        return {
            info.path[start:]: (info.size, info.mtime_ns)
            for info in self.filesystem.get_file_info(selector)
            if info.type == fs.FileType.File and not info.base_name.startswith(".")
        }

    def exists(self, name: str) -> bool:
        """Whether a file is there."""
        if self.local is not None:
            return (self.local / name).is_file()
        return self._kind(name) == fs.FileType.File

    def remove(self, name: str) -> None:
        """Removes a file, or a folder with all that is in it; what is not there is no error."""
        path = f"{self.path}/{name}"
        if self.local is not None:
            if Path(path).is_dir():
                shutil.rmtree(path)
            else:
                Path(path).unlink(missing_ok=True)
            return
        kind = self._kind(name)
        if kind == fs.FileType.Directory:
            self.filesystem.delete_dir(path)
        elif kind == fs.FileType.File:
            self.filesystem.delete_file(path)

    @contextlib.contextmanager
    def probe(self) -> Iterator[str]:
        """A small file, while the context lasts, by which others see whether they see this folder.

        Raises:
            InputError: It cannot be written.
        """
        name = f".probe-{uuid.uuid4().hex}"
        places = () if self.local is None else (self.local, *self.local.parents)
        new = [folder for folder in places if not folder.exists()]
        try:
            self.write(name, b"lbdist")
        except OSError as error:
            raise InputError(f"storage: {self} must be a place to write in ({one_line(error)})") from error
        try:
            yield name
        finally:
            self.remove(name)
            _remove_empty(new)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the folder: by a lock that the kernel lets go of, else by a lease that ends by itself.

        Raises:
            InputError: Another process holds it, or it cannot be written.
        """
        with self._flock() if self.local is not None else self._lease():
            yield

    def _busy(self) -> InputError:
        return InputError(f"storage={self}: another lbdist is at work there; wait for it or take another")

    @contextlib.contextmanager
    def _flock(self) -> Iterator[None]:
        assert self.local is not None
        new = [folder for folder in (self.local, *self.local.parents) if not folder.exists()]
        name = self.local / ".lock"
        try:
            while True:
                self.local.mkdir(parents=True, exist_ok=True)
                file = name.open("w")
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(file.fileno()).st_nlink:
                    break
                file.close()  # its holder has just removed it
        except BlockingIOError:
            file.close()
            raise self._busy() from None
        except OSError as error:
            raise InputError(f"storage: {self} must be a folder to write in ({error.strerror})") from error
        try:
            yield
        finally:
            if new and all(path.name == ".lock" for path in self.local.iterdir()):
                name.unlink()  # nothing was done, and nothing is left
                _remove_empty(new)
            file.close()

    @contextlib.contextmanager
    def _lease(self) -> Iterator[None]:
        """A file that names its holder and its end, renewed while the holder lives.

        Object stores have no atomic test-and-set in pyarrow, so the holder looks again after writing: of two
        that write at once, the one that was overwritten gives way.
        """
        name, me = "lock.json", uuid.uuid4().hex

        def held() -> tuple[str, float]:
            try:
                found = json.loads(self.read(name))
                return str(found["holder"]), float(found["until"])
            except (FileNotFoundError, ValueError, KeyError, TypeError):
                return "", 0.0

        def renew() -> None:
            self.write(name, json.dumps({"holder": me, "until": time.time() + LEASE_SECONDS}).encode())

        try:
            if held()[1] > time.time():
                raise self._busy()
            renew()
            time.sleep(0.5)
            if held()[0] != me:
                raise self._busy()
        except OSError as error:
            raise InputError(f"storage: {self} must be a place to write in ({one_line(error)})") from error
        ended = threading.Event()

        def keep() -> None:
            while not ended.wait(LEASE_SECONDS / 4):
                with contextlib.suppress(OSError):  # the next renewal may get through
                    renew()

        thread = threading.Thread(target=keep, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            if held()[0] == me:
                self.remove(name)


def write_json(store: Store, name: str, content: Mapping[str, Any]) -> None:
    """Writes a JSON file with its stamp, under the key `lbdist`."""
    mark = stamp(name, digest(json.dumps(content, sort_keys=True).encode()))
    store.write(name, json.dumps({**content, "lbdist": mark}, indent=1, sort_keys=True).encode())


def read_json(store: Store, name: str) -> dict[str, Any]:
    """What `write_json` wrote.

    Raises:
        FileNotFoundError: There is no such file.
        Damaged: It is not what was written there.
    """
    try:
        found: dict[str, Any] = json.loads(store.read(name))
        mark = found.pop("lbdist", None)
    except (ValueError, AttributeError, TypeError) as error:
        raise Damaged(f"{store}/{name} cannot be read as JSON") from error
    check_stamp(mark, name, digest(json.dumps(found, sort_keys=True).encode()), f"{store}/{name}")
    return found
