"""The headline: which variant to take for which need."""

from __future__ import annotations

from ewq.report.claim import Claim
from ewq.report.document import Bullets, Paragraph, Part, Point, Section
from ewq.report.headline import claims
from ewq.report.subject import Reported

UNSUPPORTED = (
    "This run supports no recommendation: it takes at least two variants with their weights "
    "measured, and perplexity or MMLU paired with fp16."
)
HOW = (
    "Said only where one-sided tests at 5 %, shared among all variants, support it; the errors "
    "are paired with FP16 on the same items. ± is one standard error; twice that is roughly a 95 % "
    "interval."
)


def section(subject: Reported) -> Section:
    """Claims, what stays open among them, and warnings about the run as a whole."""
    found = claims(subject)
    parts: list[Part] = [Paragraph(text, warning=True) for text in _warnings(subject)]
    if found:
        parts.append(Bullets(tuple(_point(claim) for claim in found)))
        parts.append(Paragraph(HOW))
    else:
        parts.append(Paragraph(UNSUPPORTED))
    return Section("answers", "Which variant to take", tuple(parts))


def _point(claim: Claim) -> Point:
    """Where the sentence begins with the variant to take, that is what readers look for."""
    name = claim.variant or ""
    named = bool(name) and claim.sentence.startswith(name)
    return Point(
        claim.sentence[len(name) :] if named else claim.sentence,
        claim.need,
        name if named else "",
        open_question=not claim.decided,
    )


def _warnings(subject: Reported) -> list[str]:
    """What a reader must know before believing anything below."""
    run, warnings = subject.run, []
    if not run.complete:
        missing = len(run.lost)
        some = f": {missing} of {len(run.selected)} selected benchmarks have no result" * (
            missing > 0
        )
        warnings.append(f"This run is partial{some}. What is missing is listed under Verdicts.")
    if run.foreign:
        warnings.append("This run was stored without ewq's plugin: whether it finished is unknown.")
    if run.dirty:
        warnings.append("The code differed from its commit when this was measured.")
    return warnings
