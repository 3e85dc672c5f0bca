"""A report as data: sections of words, tables, plots and excerpts, before any format."""

from __future__ import annotations

from collections.abc import Mapping
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
    """One line of a list, with the words it begins with standing out."""

    text: str
    lead: str = ""
    name: str = ""
    """What the line is about, between lead and text; stands out too."""
    open_question: bool = False
    """Whether the line says that something is not decided."""
    bad: bool = False
    """Whether the line says that something failed."""


@dataclass(frozen=True)
class Bullets:
    """A list."""

    points: tuple[Point, ...]
    title: str = ""
    folded: bool = False
    """Whether readers open it by its title."""


@dataclass(frozen=True)
class Table:
    """Rows of plain text under headings."""

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: frozenset[str] = frozenset()
    """Headings whose column is read, not compared: aligned left; the first column always is."""
    title: str = ""
    folded: bool = False
    """Whether readers open it by its title: what few need, but nobody may miss."""
    verdicts: tuple[Verdict, ...] = ()
    """The verdict of each row, where rows have one: it colours the column ``Verdict``."""


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
    """What one variant wrote."""

    source: str
    same: str
    """The part that the reference wrote too."""
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
    """A headed part of the page."""

    name: str
    """Unique within the page; becomes an element id."""
    title: str
    """Empty for a part without a heading."""
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Page:
    """A whole report."""

    title: str
    subtitle: str
    sections: tuple[Section, ...]
    data: Mapping[str, Any] = field(default_factory=dict)
    """The same for machines: what ``--format json`` writes."""
