"""Where MMLU's answers flipped against FP16, by subject."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from ewq.record import Record
from ewq.report.document import Paragraph, Plot, Section, Table
from ewq.report.drawing import MARGIN, layout
from ewq.report.escaping import plot_text
from ewq.report.rows import VariantRow
from ewq.report.subject import Reported

_SCALE = [[0.0, "rgba(213,94,0,0)"], [1.0, "rgba(213,94,0,.65)"]]
NO_REFERENCE = (
    "This run holds no FP16 answers to the same questions, so flips cannot be counted by subject; "
    "select fp16 with the other variants to see them."
)


@dataclass(frozen=True)
class _Flips:
    """Answers of one subject that changed."""

    broken: int
    """Right in FP16, wrong now."""
    mended: int
    n: int

    @property
    def count(self) -> int:
        return self.broken + self.mended


def section(subject: Reported) -> Section | None:
    """A map of subjects and variants, subjects with most flips first."""
    asked = [row for row in subject.rows if "mmlu" in row.records]
    base = subject.reference.records.get("mmlu") if subject.reference else None
    others = [row for row in asked if row is not subject.reference]
    if not others:
        return None
    found = [(row.variant, _by_subject(row.records["mmlu"], base)) for row in others if base]
    counted = {variant: flips for variant, flips in found if flips}
    if not counted:
        return Section("flips", "Answers that flipped", (Paragraph(NO_REFERENCE),))
    return Section("flips", "Answers that flipped", _drawn(subject.rows, counted))


def _by_subject(record: Record, base: Record) -> dict[str, _Flips]:
    """Flips of each subject; empty where the two were not asked the same questions."""
    same = all(record.settings.get(key) == base.settings.get(key) for key in ("data", "subjects"))
    if not same or not len(record.items) or not len(base.items):
        return {}
    new, old = record.items.column("answer"), base.items.column("answer")
    subjects = cast("Sequence[tuple[str, int]]", record.settings.get("subjects") or ())
    found, begin = {}, 0
    for name, size in subjects:
        pairs = list(zip(old[begin : begin + size], new[begin : begin + size], strict=True))
        broken = sum(a.isupper() and b.islower() for a, b in pairs)
        mended = sum(a.islower() and b.isupper() for a, b in pairs)
        found[name] = _Flips(broken, mended, len(pairs))
        begin += size
    return found


def _drawn(
    rows: Sequence[VariantRow], counted: Mapping[str, Mapping[str, _Flips]]
) -> tuple[Paragraph | Plot, ...]:
    names = next(iter(counted.values()))
    totals = {name: sum(flips[name].count for flips in counted.values()) for name in names}
    moved = sorted((name for name in names if totals[name]), key=lambda name: -totals[name])
    steady = len(names) - len(moved)
    intro = (
        "A flip is a question whose answer became wrong or became right; equal numbers of both "
        "leave the accuracy unchanged and still show that the model changed."
        + f" {steady} of {len(names)} subjects did not flip in any variant." * bool(steady)
        + " With few questions a subject, single subjects prove nothing." * bool(moved)
    )
    if not moved:
        return (Paragraph(intro),)
    plot = Plot(
        name="flips",
        title="Flips by subject",
        caption="Number of flips; colour: their share of the subject's questions.",
        figure=_figure(moved, counted),
        table=_table(moved, counted),
        height_px=110 + 22 * len(moved),
    )
    return (Paragraph(intro), plot)


def _figure(names: list[str], counted: Mapping[str, Mapping[str, _Flips]]) -> dict[str, Any]:
    grid = [[counted[variant][name] for variant in counted] for name in names]
    heat = {
        "type": "heatmap",
        "x": [plot_text(variant) for variant in counted],
        "y": [plot_text(_spoken(name)) for name in names],
        "z": [[flips.count / flips.n if flips.n else 0.0 for flips in line] for line in grid],
        "text": [[str(flips.count or "") for flips in line] for line in grid],
        "customdata": [[[f.broken, f.mended, f.n] for f in line] for line in grid],
        "texttemplate": "%{text}",
        "hovertemplate": "%{x}, %{y}<br>%{customdata[0]} broken, %{customdata[1]} mended "
        "of %{customdata[2]}<extra></extra>",
        "colorscale": _SCALE,
        "zmin": 0.0,
        "showscale": False,
        "xgap": 2,
        "ygap": 2,
    }
    frame = layout(
        "", "",
        margin={**MARGIN, "t": 4, "b": 8},
        xaxis={"type": "category", "showgrid": False, "side": "top", "tickangle": -45, "dtick": 1},
        yaxis={
            "type": "category", "autorange": "reversed", "showgrid": False, "dtick": 1,
            "tickfont": {"size": 11},
        },
    )  # fmt: skip
    return {"data": [heat], "layout": frame}


def _table(names: list[str], counted: Mapping[str, Mapping[str, _Flips]]) -> Table:
    def cell(flips: _Flips) -> str:
        return f"−{flips.broken} +{flips.mended}" if flips.count else "0"

    sizes = next(iter(counted.values()))
    rows = tuple(
        (_spoken(name), str(sizes[name].n), *(cell(flips[name]) for flips in counted.values()))
        for name in names
    )
    return Table(("Subject", "Questions", *counted), rows, title="− became wrong, + became right")


def _spoken(subject: str) -> str:
    return subject.replace("_", " ")
