"""One variant's model over the life of its tests: loaded on first use, freed for certain."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from ewq.errors import EwqError
from ewq.harness.loading import Loaded
from ewq.instruments.memory import collect_garbage
from ewq.variants import Variant

if TYPE_CHECKING:
    from ewq.instruments.load_watch import LoadReading
    from ewq.model import LanguageModel
    from ewq.planning.plan import QuantizationPlan

Loader = Callable[[Variant], tuple[Loaded, "LoadReading"]]


class VariantHandle:
    """What a test gets instead of a model.

    pytest keeps fixture values alive beyond their teardown and a failed test's
    traceback keeps its frames, so a bare model would still be in memory while
    the next one loads. Tests hold the handle; ``close`` empties it.
    """

    def __init__(self, variant: Variant, loader: Loader) -> None:
        self.variant = variant
        self.loads = 0
        self._loader = loader
        self._loaded: Loaded | None = None
        self._reading: LoadReading | None = None
        self._failure: EwqError | None = None
        self._closed = False

    @property
    def name(self) -> str:
        """The variant's name."""
        return self.variant.name

    @property
    def model(self) -> LanguageModel:
        """The loaded model. Do not keep it in a variable of a test.

        Raises:
            EwqError: loading failed; it is tried once, later uses repeat the reason.
        """
        return self.load().model

    @property
    def plan(self) -> QuantizationPlan | None:
        """The plan the model was made by; ``None`` where the recipe has none."""
        return self.load().plan

    @property
    def load_reading(self) -> LoadReading:
        """Seconds and memory that loading took."""
        self.load()
        assert self._reading is not None
        return self._reading

    def close(self) -> None:
        """Free the model, even where a traceback still refers to it."""
        self._closed = True
        # A failure's traceback holds what had been loaded before it.
        loaded, self._loaded, self._failure = self._loaded, None, None
        if loaded is not None:
            loaded.model.close()
        del loaded
        forget_last_exception()
        collect_garbage()

    def load(self) -> Loaded:
        """Load now unless loaded already."""
        if self._closed:
            raise EwqError(f"variant {self.name} was used after it was closed")
        if self._failure is not None:
            raise self._failure.with_traceback(None)
        if self._loaded is None:
            self.loads += 1
            try:
                self._loaded, self._reading = self._loader(self.variant)
            except EwqError as error:
                self._failure = error
                raise
        return self._loaded


def forget_last_exception() -> None:
    """Drop the interpreter's memory of the last failure, whose frames keep models alive."""
    for name in ("last_exc", "last_value", "last_type", "last_traceback"):
        if hasattr(sys, name):
            delattr(sys, name)


def set_libraries_aside() -> None:
    """Keep what is imported out of later collections: a million objects that live to the end.

    Called once, before the first model: what a model leaves behind must stay collectable.
    ``gc.unfreeze`` undoes it.
    """
    if not gc.get_freeze_count():
        gc.collect()
        gc.freeze()
