"""Where and how everything was measured: what somebody needs to repeat it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ewq.report.document import Paragraph, Part, Section, Table
from ewq.report.subject import Reported

_LONGEST = 160
"""Characters of a setting that are shown; longer ones are lists of prompts."""


def section(subject: Reported) -> Section:
    """The run, its environment, and each task's settings."""
    parts: list[Part] = [_run(subject)]
    machine = {key: value for key, value in subject.run.machine.items() if value is not None}
    if machine:
        parts.append(_pairs("Environment", machine))
    parts += _settings(subject)
    return Section("protocol", "Environment and protocol", tuple(parts))


def _run(subject: Reported) -> Table:
    run, first = subject.run, subject.first
    facts = {
        "model": first.model,
        "fingerprint": first.fingerprint,
        "tier": first.tier,
        "stored": f"{run.datetime:%Y-%m-%d %H:%M} UTC",
        "commit": (run.commit or "none") + (" with local changes" if run.dirty else ""),
        "branch": run.branch or "none",
        "file": run.path.name,
    }
    return _pairs("Run", facts)


def _settings(subject: Reported) -> list[Part]:
    """One table a task; settings that differ between variants are told apart."""
    by_task: dict[str, dict[str, dict[str, list[str]]]] = {}
    for record in subject.records:
        for key, value in record.settings.items():
            seen = by_task.setdefault(record.task, {}).setdefault(key, {})
            seen.setdefault(_shown(key, value), []).append(record.variant)
    if not by_task:
        return [Paragraph("No settings are stored.")]
    merged = {
        task: {key: _merged(seen) for key, seen in settings.items()}
        for task, settings in by_task.items()
    }
    shared = _shared(list(merged.values()))
    tables = [_pairs("Settings of all tasks", shared)] * bool(shared)
    for task, settings in merged.items():
        own = {key: value for key, value in settings.items() if key not in shared}
        tables += [_pairs(task, own)] * bool(own)
    return list(tables)


def _shared(settings: list[dict[str, str]]) -> dict[str, str]:
    """What several tasks all have in common, told once."""
    first, *others = settings
    common = {k: v for k, v in first.items() if all(other.get(k) == v for other in others)}
    return common if others else {}


def _merged(seen: Mapping[str, list[str]]) -> str:
    if len(seen) == 1:
        return next(iter(seen))
    return "; ".join(f"{value} ({', '.join(names)})" for value, names in seen.items())


def _shown(key: str, value: Any) -> str:  # noqa: ANN401 - stored JSON
    if key == "subjects" and isinstance(value, list):
        return f"{len(value)} subjects, {sum(int(n) for _, n in value)} questions"
    if key.endswith("_bytes") and isinstance(value, int):
        return f"{value / 1e9:.1f} GB"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _pairs(title: str, facts: Mapping[str, Any]) -> Table:
    rows = tuple((str(key), _shown(key, value)) for key, value in facts.items())
    return Table(("Setting", "Value"), rows, frozenset({"Value"}), title=title)
