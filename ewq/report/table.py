"""The variants' table: which columns, and which of them fit a terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ewq.record import Verdict
from ewq.report import rows as cells
from ewq.report.escaping import terminal_line
from ewq.report.evidence import LOSSES
from ewq.report.rows import VariantRow

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Column:
    """A heading and what stands under it."""

    heading: str
    cell: Callable[[VariantRow], str]
    dispensable: int = 0
    """Where a terminal is too narrow for all columns, those of the highest number go first."""


_WORDS = ("Variant", "Verdict")
_GAP = 2
"""Blanks between columns."""
_STYLES = {Verdict.FAIL: "bold red", Verdict.INCONCLUSIVE: "yellow", Verdict.IMPROVED: "green"}


def columns_for(rows: Sequence[VariantRow]) -> tuple[Column, ...]:
    """The columns of which anything was measured; the memory column says which memory it shows."""
    unit = cells.size_unit(rows)
    heading = f"VRAM {unit.name}" if _on_gpu(rows) else unit.name
    columns = (
        Column("Variant", lambda row: row.variant),
        Column(heading, lambda row: cells.memory(row, unit), dispensable=3),
        Column("Bits/w", cells.bits_per_weight, dispensable=6),
        Column("Tok/s", cells.tokens_per_s, dispensable=4),
        Column("MMLU %", cells.mmlu_percent, dispensable=1),
        Column("Δ points", cells.mmlu_change_points, dispensable=8),
        Column("PPL", cells.perplexity, dispensable=5),
        Column("Δ PPL %", cells.perplexity_change_percent, dispensable=2),
        Column("KLD mnat", cells.kld_millinats, dispensable=9),
        Column("Verdict", lambda row: row.verdict.value, dispensable=7),
    )
    return tuple(c for c in columns if any(c.cell(row) != cells.ABSENT for row in rows))


def _on_gpu(rows: Sequence[VariantRow]) -> bool:
    return any(row.metric("memory", "vram_peak_bytes") for row in rows)


def terminal_table(rows: Sequence[VariantRow], width: int) -> Table:
    """The table for a terminal ``width`` columns wide.

    Columns that do not fit are left out, never cut off: half a figure is a wrong figure.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    shown = _fitting(columns_for(rows), rows, width)
    for column in shown:
        justify = "left" if column.heading in _WORDS else "right"
        table.add_column(column.heading, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for row in rows:
        style = _STYLES.get(row.verdict, "")
        # Text, since names are data: a file may be called "[/]".
        words = [(terminal_line(c.cell(row)), c.heading in _WORDS) for c in shown]
        table.add_row(*(Text(text, style if word else "") for text, word in words))
    return table


def _fitting(
    columns: Sequence[Column], rows: Sequence[VariantRow], width: int
) -> tuple[Column, ...]:
    shown = list(columns)
    while sum(_width(column, rows) + _GAP for column in shown) > width:
        least = max(shown, key=lambda column: column.dispensable)
        if least.dispensable == 0:
            break
        shown.remove(least)
    return tuple(shown)


def _width(column: Column, rows: Sequence[VariantRow]) -> int:
    from rich.cells import cell_len

    return max(cell_len(text) for text in (column.heading, *(column.cell(row) for row in rows)))


def footnotes(rows: Sequence[VariantRow]) -> list[str]:
    """What a reader must know to read the table rightly."""
    unit = cells.size_unit(rows).name
    memory = f"VRAM {unit}: the peak. " if _on_gpu(rows) else f"{unit}: the weights. "
    sized = any(cells.memory_metric(row) for row in rows)
    errors = "± is one standard error; Δ is paired with fp16 on the same items."
    notes = [memory * sized + errors]
    if any(row.clock_doubt for row in rows):
        notes.append("~ this speed is rough: the clock was noisy or throttled.")
    if largest := _undetected(rows):
        text = ", ".join(f"{measure} {words}" for measure, words in largest.items())
        notes.append(f"Changes below these could have gone unseen (5 %, power 80 %): {text}.")
    if any(row.at_chance for row in rows):
        notes.append("* MMLU at chance level: this model's letter score says nothing.")
    return notes


def _undetected(rows: Sequence[VariantRow]) -> dict[str, str]:
    """Measure -> the change that would have been found in every variant."""
    found = [loss for row in rows for ask in LOSSES if (loss := ask(row))]
    found.sort(key=lambda loss: loss.detectable())
    return {loss.measure: loss.detectable_words() for loss in found}
