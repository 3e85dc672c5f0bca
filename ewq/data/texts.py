"""Texts to score: a folder of domains, one file, or WikiText-2 from the hub."""

import codecs
import hashlib
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ewq.errors import InputError

HUB = "hub"
_WIKITEXT_2 = "wikitext2"
_WIKITEXT_FILE = "wiki.test.raw"


@dataclass(frozen=True)
class Document:
    """One text."""

    domain: str
    name: str
    text: str
    lines_are_rows: bool = False
    """A WikiText ``.raw`` file: its lines are the rows of the published data set."""

    def rows(self) -> list[str]:
        """The data set rows in this document; blank lines of WikiText are empty rows."""
        if not self.lines_are_rows:
            return [self.text]
        # Not splitlines: it also ends lines at characters that are text in WikiText, as U+2028.
        lines = [f"{line}\n" for line in self.text.split("\n")]
        lines[-1] = lines[-1].removesuffix("\n")
        return [line if line.strip() else "" for line in lines if line]


@dataclass(frozen=True)
class TextSet:
    """Documents in a fixed order, domain by domain."""

    documents: tuple[Document, ...]
    digest: str
    """``sha256:...`` over domains and texts in order; file names do not count."""

    @property
    def domains(self) -> tuple[str, ...]:
        """Domains in order of first appearance."""
        return tuple(dict.fromkeys(document.domain for document in self.documents))

    def of(self, domain: str) -> tuple[Document, ...]:
        """The documents of one domain, in order."""
        return tuple(document for document in self.documents if document.domain == domain)


def load_texts(source: str | Path) -> TextSet:
    """Read texts: of ``hub`` (WikiText-2's raw test part), a text file, or a folder.

    A folder holds ``DOMAIN/*.txt`` and/or ``DOMAIN.txt``. What cannot be read is an InputError.
    """
    if source == HUB:
        rows = hub_rows("Salesforce/wikitext", "wikitext-2-raw-v1", split="test")["text"]
        # The hub stores the file's blank lines, " \n", as empty rows.
        text = "".join(row or " \n" for row in rows)
        return text_set([Document(_WIKITEXT_2, _WIKITEXT_FILE, text, lines_are_rows=True)])
    path = Path(source)
    if path.is_file():
        # The same digest as from the hub.
        return text_set([_read(path, _WIKITEXT_2 if path.name == _WIKITEXT_FILE else path.stem)])
    if not path.is_dir():
        raise InputError(f"no texts at {path}: expected a folder, a text file or {HUB!r}")
    return text_set(_read_folder(path))


def text_set(documents: Sequence[Document]) -> TextSet:
    """Documents together with the digest that identifies them."""
    digest = hashlib.sha256()
    for document in documents:
        for part in (document.domain, document.text):
            content = part.encode()
            digest.update(len(content).to_bytes(8, "little") + content)
    return TextSet(tuple(documents), f"sha256:{digest.hexdigest()}")


def _read_folder(folder: Path) -> list[Document]:
    documents: list[Document] = []
    for entry in sorted(folder.iterdir(), key=lambda path: (path.stem, path.name)):
        if entry.name.startswith("."):
            continue
        files = sorted(entry.glob("*.txt"))
        if entry.is_dir() and not files:
            raise InputError(f"domain folder {entry} holds no .txt file; add one or remove it")
        documents += [_read(file, entry.name) for file in files]
        if entry.is_file() and entry.suffix == ".txt":
            documents.append(_read(entry, entry.stem))
    if not documents:
        raise InputError(f"{folder} holds no texts: expected DOMAIN/NAME.txt or DOMAIN.txt files")
    return documents


def _read(file: Path, domain: str) -> Document:
    text = read_text(file)
    if not is_visible(text):
        raise InputError(f"{file} is empty: it holds no visible character; remove it or fill it")
    try:
        domain.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{file!r}: its name is not UTF-8; rename it") from error
    return Document(domain, file.name, text, lines_are_rows=file.suffix == ".raw")


def read_text(file: Path) -> str:
    """A text as it stands in its file, line ends included, without a byte order mark."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from error
    try:
        text = data.removeprefix(codecs.BOM_UTF8).decode("utf-8")
    except UnicodeDecodeError as error:
        place = error.start + len(data) - len(error.object)
        raise InputError(f"{file} is not UTF-8 text (byte {place}); convert it to UTF-8") from error
    if "\0" in text:
        place = data.index(b"\0")
        raise InputError(f"{file} is not text: byte {place} is NUL; convert it to UTF-8")
    return text


def is_visible(text: str) -> bool:
    """Whether a text has a character to see: no blank, control or zero-width one."""
    return any(unicodedata.category(character)[0] not in "CZ" for character in text)


def hub_rows(name: str, configuration: str, split: str) -> Any:
    """A part of a data set on the hub; an InputError where it cannot be had."""
    from datasets import load_dataset

    try:
        return load_dataset(name, configuration, split=split)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"cannot load {name} from the hub: {reason}; give a folder") from error
