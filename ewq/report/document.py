"""A report as data, before any format, and its texts made harmless for each place they go to."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from ewq.record import Verdict

Figure = Mapping[str, Any]
"""What ``draw.js`` draws, by its ``kind``; texts inside are escaped by ``plot_text``."""
VERDICT = "Verdict"
"""The heading whose column is coloured by each row's verdict."""
# C0 and C1 controls but tab and newline, and halves of surrogate pairs, are not valid in HTML or
# UTF-8; explicit changes of direction would turn round the words that follow the text.
_INVALID = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_LONGEST_NAME = 40
"""Characters of a name inside a plot; longer ones keep their beginning and end."""
_MARKDOWN = re.compile(r"([\\`*_\[\]|#~$!])")


@dataclass(frozen=True)
class Paragraph:
    """A paragraph of plain text."""

    text: str
    warning: bool = False


@dataclass(frozen=True)
class Point:
    """One line of a list; lead and name stand out before the text."""

    text: str
    lead: str = ""
    name: str = ""
    open_question: bool = False
    bad: bool = False


@dataclass(frozen=True)
class Bullets:
    """A list; if folded, readers open it by its title."""

    points: tuple[Point, ...]
    title: str = ""
    folded: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of plain text under headings; if folded, readers open it by its title."""

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: frozenset[str] = frozenset()
    """Headings whose column is read, not compared: aligned left; the first column always is."""
    title: str = ""
    folded: bool = False
    verdicts: tuple[Verdict, ...] = ()

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, str]], *words: str, **options: Any) -> "Table":
        """A table of rows that name the headings of their cells; ``options`` are its fields."""
        headings = tuple(rows[0]) if rows else ()
        cells = tuple(tuple(row.values()) for row in rows)
        return cls(headings, cells, frozenset(words), **options)


@dataclass(frozen=True)
class Plot:
    """A picture, and the table that says the same to those who do not see it."""

    name: str
    """Unique within the page; becomes an element id."""
    title: str
    caption: str
    table: Table
    figure: Figure = field(default_factory=dict)


@dataclass(frozen=True)
class Excerpts:
    """One prompt and its continuations, side by side."""

    name: str
    prompt: str
    texts: Mapping[str, tuple[str, str]]
    """Variant -> the part that the reference wrote too, and the rest."""


Part = Paragraph | Bullets | Table | Plot | Excerpts


@dataclass(frozen=True)
class Section:
    """A part of the page, under a heading if it has a title."""

    name: str
    title: str
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Page:
    """A whole report, and the same for machines as JSON types."""

    title: str
    subtitle: str
    sections: tuple[Section, ...]
    data: Mapping[str, Any] = field(default_factory=dict)


def printable(text: str) -> str:
    """Text that UTF-8 and HTML can hold: what they cannot becomes U+FFFD."""
    return _INVALID.sub("�", text.replace("\r\n", "\n"))


def terminal_line(text: str) -> str:
    """One line for a terminal, without escape sequences of its own."""
    return printable(text).replace("\n", " ")


def plot_text(text: str) -> str:
    """For names in plotly.js, which reads a few HTML tags and entities in them."""
    if len(text) > _LONGEST_NAME:
        text = f"{text[: _LONGEST_NAME - 13]}…{text[-12:]}"
    return escape(printable(text), quote=False)


def markdown_text(text: str) -> str:
    """One line of Markdown without markup, HTML or mention of anybody of its own."""
    line = " ".join(printable(text).split())
    plain = escape(line, quote=False).replace("@", "@\u200b").replace("://", ":\u200b//")
    return _MARKDOWN.sub(r"\\\1", plain)


def markdown_block(text: str) -> str:
    """Any text as a Markdown code block, longer fences than any inside it."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{printable(text)}\n{fence}"


def csv_text(text: str) -> str:
    """A cell that no spreadsheet takes for a formula."""
    line = printable(text)
    return f"'{line}" if line.startswith(("=", "+", "-", "@", "\t")) else line
