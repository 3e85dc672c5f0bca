"""The reference's results, which paired figures need: of this run, stored, or measured for them."""

from ewq.files import read_cached, write_cached
from ewq.measurement import Doubt, DoubtKind, TaskResult
from ewq.storage.environment import RunIdentity
from ewq.tasks.table import Pairing, find_task
from ewq.tasks.throughput import DECODE_MODE

MEASURED_FOR_PAIRING = "the reference was measured for this comparison only"
BEFORE_INTERRUPTION = Doubt(
    DoubtKind.OTHER_SESSION, "the reference's speed was measured before the run was interrupted"
)
CACHE = "references"
STORED = "paired with a stored result of the reference"
MISSING = "not paired with the reference, which could not be measured"


class References:
    """Results of the reference variant by task."""

    def __init__(self, identity: RunIdentity) -> None:
        self.origin: dict[str, str] = {}
        """Task -> a sentence on where its reference came from, unless this run measured it."""
        self.replayed: set[str] = set()
        """Tasks whose reference was measured before the run was interrupted."""
        self._identity = identity
        self._results: dict[str, TaskResult] = {}

    def remember(self, task: str, result: TaskResult, origin: str = "") -> None:
        """Keep the reference's own result, for this run and for later ones."""
        self._results[task] = result
        if origin:
            self.origin[task] = origin
        if _is_kept(task):
            write_cached(CACHE, self._identity.key(task), result.to_json())

    def get(self, task: str) -> TaskResult | None:
        """The reference's result; ``None`` where the task pairs in another way or failed."""
        return self._results.get(task)

    def doubts(self, task: str, result: TaskResult) -> tuple[Doubt, ...]:
        """Why figures of ``result`` paired with the reference are not to be trusted."""
        doubts = []
        if task in self.replayed and find_task(task).same_session:
            doubts.append(BEFORE_INTERRUPTION)
        reference = self.get(task)
        ours, theirs = result.side.get(DECODE_MODE), reference and reference.side.get(DECODE_MODE)
        if ours and theirs and ours != theirs:
            text = f"decoded by {ours}, the reference by {theirs}: the ratio compares these too"
            doubts.append(Doubt(DoubtKind.DECODE_MODE, text))
        return tuple(doubts)

    def recall(self, task: str) -> bool:
        """Use the stored result of an equal run; whether there was one."""
        stored = read_cached(CACHE, self._identity.key(task)) if _is_kept(task) else None
        if stored is None:
            return False
        self._results[task] = TaskResult.from_json(stored)
        self.origin[task] = STORED
        return True


def _is_kept(task: str) -> bool:
    """Whether results of the task are of use to later runs."""
    return find_task(task).pairing is Pairing.RESULTS and not find_task(task).same_session
