"""What a worker process does: it measures tasks on variants, and keeps nothing."""

import os
import platform
from contextlib import suppress
from dataclasses import replace
from typing import Any

from ewq.data.distributions import Reference
from ewq.errors import EwqError, NotApplicable
from ewq.gating.thresholds import BUILT_IN
from ewq.harness.handle import LoadVariant, VariantHandle
from ewq.harness.measuring import measure_unpaired
from ewq.harness.options import Options
from ewq.harness.session import Gate, RunData, Session, identify
from ewq.harness.subject import Placement, Subject, find_device, find_subject
from ewq.instruments.gpu import ALL
from ewq.instruments.processor_wait import wait_without_spinning
from ewq.planning.plan import QuantizationPlan
from ewq.progress import NO_PROGRESS
from ewq.record import RecordKey
from ewq.storage.environment import RunIdentity
from ewq.storage.journal import Journal
from ewq.tasks.table import Pairing, find_task
from ewq.tasks.tiers import tier_sizes
from ewq.variants import Variant

Recorded = dict[str, Reference | NotApplicable]


class Worker:
    """Lives in a process of its own; its errors are raised in the driver's."""

    _session: Session
    _handle: VariantHandle | None = None

    def open(
        self,
        folder: str,
        options: Options,
        subject: Any,
        placement: Placement,
        loader: LoadVariant,
        selected: tuple[RecordKey, ...],
    ) -> tuple[str, RunIdentity]:
        """Where this is, and what it will measure: to be compared with the driver's.

        Paths are the driver's, from its ``folder`` on. ``subject`` is a project's own kind; the
        options say where ewq's own is.
        """
        wait_without_spinning()
        with suppress(OSError):  # of another machine
            os.chdir(folder)
        # All the cards that Ray gave this process, whichever the driver's own is.
        device = find_device(placement.device if placement.device == "cpu" else ALL)
        found = subject or find_subject(
            options.model, options.tier, device, NO_PROGRESS, options.calibration
        )
        own, data = (
            replace(placement, device=device),
            RunData(options, tier_sizes(options.tier, device)),
        )
        identity = identify(found, own, data, selected)
        unkept = Gate(BUILT_IN), Journal.unkept(identity)
        self._session = Session(
            options, found, own, data, identity, *unkept, NO_PROGRESS, loader, selected
        )
        return platform.node(), identity

    def measure(
        self,
        variant: Variant,
        plan: QuantizationPlan | None,
        task: str,
        recorded: Recorded | EwqError | None,
    ) -> dict[str, Any]:
        """What the journal keeps of a task, not paired; the model stays for the next one."""
        if isinstance(recorded, EwqError):
            raise recorded
        self._session.recorded = recorded or self._session.recorded
        return measure_unpaired(self._session, self._hold(variant, plan), task)

    def record(self, variant: Variant) -> tuple[None, Recorded]:
        """The reference's distributions, which only those read that need them."""
        for task in dict.fromkeys(task for _, task in self._session.selected):
            if find_task(task).pairing is Pairing.DISTRIBUTIONS:
                with suppress(NotApplicable):
                    self._session.distributions(self._hold(variant), task)
        return None, self._session.recorded

    def _hold(self, variant: Variant, plan: QuantizationPlan | None = None) -> VariantHandle:
        """The variant's handle; that of another is closed first."""
        if self._handle is None or self._handle.variant != variant:
            if self._handle is not None:
                self._handle.close()
            if plan is not None and isinstance(self._session.subject, Subject):
                self._session.subject.plans[variant.name] = plan
            self._handle = self._session.handle(variant)
        return self._handle
