"""A journal of finished measurements, so that an interrupted run loses none: an SQLite file with
the run's identity and a table of events, each on disk before the call that writes it returns.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ewq.errors import EwqError, InputError
from ewq.record import RecordKey
from ewq.storage.environment import RunIdentity

JOURNAL = "journal.sqlite"
PREVIOUS_JOURNAL = "journal.previous.sqlite"
"""Of a run that was stored, or given up for another."""

_TABLES = (
    "CREATE TABLE IF NOT EXISTS identity (json TEXT)",
    "CREATE TABLE IF NOT EXISTS events (kind TEXT, variant TEXT, task TEXT, json TEXT)",
    "DELETE FROM identity",
    "DELETE FROM events",
)


class JournalLost(EwqError):
    """Results can no longer be kept: going on would only lose more."""


class Journal:
    """The journal of one run; what writes raises :class:`JournalLost`, what opens an EwqError."""

    def __init__(self, path: Path, file: sqlite3.Connection) -> None:
        self.path = path
        self.completed: dict[RecordKey, dict[str, Any]] = {}
        """Payloads of finished measurements, those of resumed runs included."""
        self.crashes = Counter[str]()
        """How often an earlier process of this run died while it measured a variant."""
        self._file = file

    @classmethod
    def create(cls, path: Path, identity: RunIdentity) -> Journal:
        """Start a new journal; one left over from an earlier run is kept beside it."""
        journal = cls(path, _open(path))
        if journal._has_tables():
            _copy(journal._file, path.with_name(PREVIOUS_JOURNAL))
        journal._begin(identity)
        return journal

    @classmethod
    def unkept(cls, identity: RunIdentity) -> Journal:
        """A journal in memory, for a run that stores nothing."""
        journal = cls(Path(), sqlite3.connect(":memory:", isolation_level=None))
        journal._begin(identity)
        return journal

    @classmethod
    def resume(cls, path: Path, identity: RunIdentity) -> Journal:
        """Go on with an interrupted run; one killed before it had an identity starts afresh.

        An InputError where there is no journal, it is damaged, or it measured something else.
        """
        if not path.is_file():
            raise InputError(f"nothing to resume: {path} does not exist; run without --ewq-resume")
        journal = cls(path, _open(path))
        try:
            journal._read(identity)
        except (sqlite3.DatabaseError, ValueError, TypeError, KeyError) as error:
            journal.close()
            raise InputError(f"{path} is damaged ({error}); run without --ewq-resume") from error
        except EwqError:
            journal.close()
            raise
        return journal

    def started(self, key: RecordKey) -> None:
        """Note that a measurement begins, so that a crash of the whole process can be blamed."""
        self._add("started", key, None)

    def finished(self, key: RecordKey, payload: Mapping[str, Any]) -> None:
        """Keep a result: everything needed to rebuild its stored form."""
        self._add("finished", key, payload)
        self.completed[key] = dict(payload)

    def failed(self, key: RecordKey, reason: str) -> None:
        """Note that a measurement ended with an error; resuming will try it again."""
        self._add("failed", key, reason)

    def close(self) -> None:
        """Close the file; calling it twice is harmless."""
        self._file.close()

    def _begin(self, identity: RunIdentity) -> None:
        insert = ("INSERT INTO identity VALUES (?)", (_encode(asdict(identity)),))
        self._write(*((statement, ()) for statement in _TABLES), insert)

    def _has_tables(self) -> bool:
        return bool(self._file.execute("SELECT * FROM sqlite_master").fetchall())

    def _add(self, kind: str, key: RecordKey, content: object) -> None:
        self._write(("INSERT INTO events VALUES (?, ?, ?, ?)", (kind, *key, _encode(content))))

    def _write(self, *statements: tuple[str, tuple[object, ...]]) -> None:
        """Make a change as a whole and wait for the disk; a failure leaves the file as it was."""
        try:
            with self._file:
                self._file.execute("BEGIN")
                for statement, values in statements:
                    self._file.execute(statement, values)
        except sqlite3.Error as error:
            kept = f"{len(self.completed)} finished measurements are kept in {self.path}"
            advice = f"{kept}: free space, then resume"
            if getattr(error, "sqlite_errorname", "") == "SQLITE_CORRUPT":
                advice = f"delete {self.path}, then run again"
            raise JournalLost(f"cannot write the journal ({error}); {advice}") from error

    def _read(self, identity: RunIdentity) -> None:
        if not self._has_tables():
            self._begin(identity)
            return
        (text,) = self._file.execute("SELECT json FROM identity").fetchone()
        stored = RunIdentity(**json.loads(text))
        if reasons := stored.differences(identity) + stored.code_differences(identity):
            why = "; ".join(reasons)
            raise InputError(f"cannot resume {self.path}: {why}; run without --ewq-resume")
        # A run resumed with other tasks reads other data besides.
        joined = replace(identity, settings={**stored.settings, **identity.settings})
        self._write(("UPDATE identity SET json = ?", (_encode(asdict(joined)),)))
        for kind, variant, task, content in self._file.execute("SELECT * FROM events"):
            self.crashes[variant] += 1 if kind == "started" else -1
            if kind == "finished":
                self.completed[variant, task] = json.loads(content)


def _open(path: Path) -> sqlite3.Connection:
    """Open alone: two runs would mix their events."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = sqlite3.connect(path, timeout=0, isolation_level=None)
        # The lock of the first transaction is kept until the file is closed.
        file.execute("PRAGMA locking_mode = EXCLUSIVE")
        file.execute("PRAGMA synchronous = FULL")
        file.execute("BEGIN EXCLUSIVE")
        file.execute("COMMIT")
    except (OSError, sqlite3.DatabaseError) as error:
        reason = getattr(error, "sqlite_errorname", "")
        if reason == "SQLITE_BUSY":
            raise EwqError(f"{path} is in use by another run: wait for it or stop it") from error
        if reason == "SQLITE_NOTADB":
            raise InputError(f"{path} is no journal of ewq: delete it, then run again") from error
        raise EwqError(f"cannot open the journal {path}: {error}") from error
    return file


def _copy(file: sqlite3.Connection, to: Path) -> None:
    """Not by reading the file: closing any other handle of it would lift the lock."""
    try:
        to.unlink(missing_ok=True)
        with closing(sqlite3.connect(to)) as copy:
            file.backup(copy)
    except (OSError, sqlite3.Error) as error:
        raise EwqError(f"cannot keep the earlier run's journal as {to}: {error}") from error


def _encode(content: object) -> str:
    try:
        return json.dumps(content, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise JournalLost(f"a result is not plain JSON, so it cannot be kept: {error}") from error
