"""What can go wrong: every error that a user can meet is one line that says what to do."""

from collections.abc import Collection


class EwqError(Exception):
    """A failure at work: the request was sound, carrying it out was not possible (exit 3)."""

    exit_code = 3

    def __str__(self) -> str:
        """One line, whatever the names hold that a file brought into it."""
        return " ".join(super().__str__().splitlines())


class InputError(EwqError):
    """Bad use or bad input: nothing was started (exit 2)."""

    exit_code = 2


def check_known(name: str, known: Collection[str], what: str) -> None:
    """Raise an InputError of a name that is not among the known ones."""
    if name not in known:
        raise InputError(f"unknown {what} {name!r}; known: {', '.join(known)}")


class CheckpointError(InputError):
    """A model that cannot be found, read or understood."""


class PlanError(InputError):
    """A plan that is malformed, impossible, or belongs to another model."""


class BackendUnavailable(InputError):
    """An optional library or device is missing; the message names the install command."""


class NotApplicable(EwqError):
    """What a task asks of a model that cannot have it: the task is skipped."""


class MeasurementError(EwqError):
    """A measurement that could not be made: an error, never a number."""
