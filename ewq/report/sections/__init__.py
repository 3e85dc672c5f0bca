"""The parts of a report, each a function ``ReportedRun -> Section | None``."""
