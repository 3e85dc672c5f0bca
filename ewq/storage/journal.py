"""An append-only journal of finished measurements, so that an interrupted run loses none.

One JSON document a line, each on disk (fsync) before the call returns: first a header that says
what is being measured, then ``started``, ``finished`` and ``failed`` lines.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from ewq.errors import EwqError, InputError
from ewq.files import sync_folder

SCHEMA = 1
Key = tuple[str, ...]
"""What identifies a measurement, such as ``(variant, task)``."""


class Journal:
    """The journal of one run; a context manager that closes the file."""

    def __init__(self, path: Path, stream: IO[bytes]) -> None:
        self.path = path
        self.completed: dict[Key, dict[str, Any]] = {}
        """Payloads of finished measurements, those of resumed runs included."""
        self.failures: dict[Key, str] = {}
        """Reasons of measurements whose last attempt failed in an orderly way."""
        self.crashed: set[Key] = set()
        """Started by an earlier process that died before it could finish or fail them."""
        self.crashes: Counter[Key] = Counter()
        """How often each measurement was under way when an earlier process died."""
        self.attempts: Counter[Key] = Counter()
        """How often each measurement was started, this process included."""
        self._stream = stream
        self._end = 0

    @classmethod
    def create(cls, path: Path, header: Mapping[str, Any], previous: Path | None = None) -> Journal:
        """Start a new journal; one left over from an earlier run is replaced.

        Args:
            path: the journal's file.
            header: what is going to be measured.
            previous: where the replaced journal's lines go; they are lost where this is ``None``.

        Raises:
            EwqError: the file cannot be written, or another run is writing it.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EwqError(f"cannot make {path.parent}: {error.strerror}") from error
        journal = cls(path, _open_locked(path))
        if previous is not None and path.stat().st_size:
            # Copied, not renamed: the lock lies on this very file, and must stay on it.
            _copy(path, previous)
        journal._begin(header)
        sync_folder(path.parent)
        return journal

    @classmethod
    def unkept(cls, header: Mapping[str, Any]) -> Journal:
        """A journal that vanishes with the process, for a run that stores nothing."""
        stream = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - closed with the journal
        journal = cls(Path(os.devnull), stream)
        journal._begin(header)
        return journal

    @classmethod
    def resume(cls, path: Path, header: Mapping[str, Any]) -> Journal:
        """Go on with an interrupted run.

        A last line that is torn (power loss, full disk) counts as never written; a journal
        without a whole line was killed before it measured anything, and starts afresh.

        Raises:
            InputError: there is no journal, it is damaged, or it measured something else; the
                message lists what differs.
            EwqError: another run is writing it.
        """
        if not path.is_file():
            raise InputError(f"nothing to resume: {path} does not exist; run without resuming")
        journal = cls(path, _open_locked(path))
        try:
            if b"\n" not in path.read_bytes():
                journal._begin(header)
                return journal
            lines = journal._read_lines()
            _check_header(path, lines, header)
            # A torn last line is cut off the file, so the next line starts clean.
            journal._truncate(journal._end)
            for entry in lines[1:]:
                journal._replay(entry)
        except EwqError:
            journal.close()
            raise
        return journal

    def started(self, key: Key) -> None:
        """Note that a measurement begins, so that a crash of the whole process can be blamed."""
        self._write("started", key)

    def finished(self, key: Key, payload: Mapping[str, Any]) -> None:
        """Keep a result: everything needed to rebuild its stored form."""
        self._write("finished", key, payload=dict(payload))

    def failed(self, key: Key, reason: str) -> None:
        """Note that a measurement ended with an error; resuming will try it again."""
        self._write("failed", key, reason=reason)

    def close(self) -> None:
        """Close the file; calling it twice is harmless."""
        self._stream.close()

    def discard(self) -> None:
        """Close and delete the journal: the results are safe elsewhere."""
        self.close()
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _begin(self, header: Mapping[str, Any]) -> None:
        self._truncate(0)
        self._append({"kind": "header", "schema": SCHEMA, "header": dict(header)})

    def _write(self, kind: str, key: Key, **extra: object) -> None:
        entry = {"kind": kind, "key": list(key), **extra}
        self._append(entry)
        self._apply(entry)

    def _append(self, entry: Mapping[str, Any]) -> None:
        """Write one line and wait for the disk; on failure leave the file as it was before."""
        line = _encode(entry)
        try:
            _write_all(self._stream, line)
            os.fsync(self._stream.fileno())
        except OSError as error:
            self._truncate(self._end)
            kept = f"{len(self.completed)} finished measurements are kept in {self.path}"
            raise EwqError(
                f"cannot write the journal ({error.strerror}); {kept}: free space, then resume"
            ) from error
        self._end += len(line)

    def _truncate(self, size: int) -> None:
        os.ftruncate(self._stream.fileno(), size)
        self._stream.seek(size)
        self._end = size

    def _read_lines(self) -> list[dict[str, Any]]:
        """All whole lines, up to a torn last one."""
        self._stream.seek(0)
        raw = self._stream.read().split(b"\n")[:-1]
        entries: list[dict[str, Any]] = []
        for number, line in enumerate(raw, start=1):
            entry = _decode(line)
            if entry is None and number < len(raw):
                raise InputError(f"{self.path}, line {number} is damaged: run without resuming")
            if entry is not None:
                entries.append(entry)
                self._end += len(line) + 1
        return entries

    def _replay(self, entry: Mapping[str, Any]) -> None:
        self._apply(entry)
        key = tuple(entry["key"])
        if entry["kind"] == "started":
            self.crashed.add(key)
            self.crashes[key] += 1
        elif key in self.crashed:
            self.crashed.discard(key)
            self.crashes[key] -= 1

    def _apply(self, entry: Mapping[str, Any]) -> None:
        key = tuple(entry["key"])
        match entry["kind"]:
            case "started":
                self.attempts[key] += 1
            case "finished":
                self.completed[key] = entry["payload"]
                self.failures.pop(key, None)
            case "failed":
                self.failures[key] = entry["reason"]


def _write_all(stream: IO[bytes], line: bytes) -> None:
    """An unbuffered write may be short, on a filling disk for one; the next then says why."""
    while line:
        line = line[stream.write(line) :]


def _encode(entry: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(entry, allow_nan=False, separators=(",", ":")).encode() + b"\n"
    except (TypeError, ValueError) as error:
        raise EwqError(f"a result is not plain JSON and cannot be journalled: {error}") from error


def _decode(line: bytes) -> dict[str, Any] | None:
    """The entry on a line; ``None`` when the line is not whole."""
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    whole = isinstance(entry, dict) and ("header" in entry or "key" in entry)
    return entry if whole else None


def _check_header(path: Path, lines: list[dict[str, Any]], header: Mapping[str, Any]) -> None:
    if not lines or lines[0].get("schema") != SCHEMA or "header" not in lines[0]:
        raise InputError(f"{path} is not a journal of this ewq: run without resuming")
    stored = lines[0]["header"]
    wanted = json.loads(_encode(header))
    changed = [
        f"{key} was {stored.get(key)!r}, is {wanted.get(key)!r}"
        for key in sorted({*stored, *wanted})
        if stored.get(key) != wanted.get(key)
    ]
    if changed:
        raise InputError(f"cannot resume {path}: {'; '.join(changed)}; run without resuming")


def _open_locked(path: Path) -> IO[bytes]:
    """Open for reading and writing without truncating, alone: two writers would mix their lines."""
    import fcntl

    try:
        stream = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b", buffering=0)
    except OSError as error:
        raise EwqError(f"cannot open the journal {path}: {error.strerror}") from error
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        stream.close()
        raise EwqError(f"{path} is in use by another run: wait for it, or end it") from error
    return stream


def _copy(path: Path, to: Path) -> None:
    try:
        shutil.copyfile(path, to)
    except OSError as error:
        raise EwqError(
            f"cannot keep the earlier run's journal as {to}: {error.strerror}"
        ) from error
