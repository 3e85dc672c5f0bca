"""A report as data: sections of words, tables, plots and excerpts, before any format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ewq.record import Verdict

Figure = Mapping[str, Any]
"""``data`` and ``layout`` as plotly.js takes them; texts inside are escaped by ``plot_text``."""
VERDICT = "Verdict"
"""The heading whose column is coloured by each row's verdict."""


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
    """Of each row, where rows have one."""

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, str]], *words: str, **options: Any) -> Table:
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
    height_px: int = 420


@dataclass(frozen=True)
class Excerpt:
    """What one variant wrote: the part that the reference wrote too, and the rest."""

    source: str
    same: str
    different: str
    note: str = ""


@dataclass(frozen=True)
class Excerpts:
    """One prompt and its continuations, side by side."""

    name: str
    prompt: str
    excerpts: tuple[Excerpt, ...]


Part = Paragraph | Bullets | Table | Plot | Excerpts


@dataclass(frozen=True)
class Section:
    """A part of the page, under a heading if it has a title."""

    name: str
    """Unique within the page; becomes an element id."""
    title: str
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Page:
    """A whole report, and the same for machines as JSON types."""

    title: str
    subtitle: str
    sections: tuple[Section, ...]
    data: Mapping[str, Any] = field(default_factory=dict)
