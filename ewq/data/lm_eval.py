"""Tasks of lm-evaluation-harness, by name or as YAML files, with the documents that they ask."""

import difflib
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from ewq.errors import BackendUnavailable, InputError
from ewq.files import content_key

FILES = (".yaml", ".yml")
SEED = 1234
"""Of lm-eval's own few-shot examples, and of the documents that a tier draws."""
_ELSEWHERE = ("metadata", "dataset_kwargs")
"""Where a task's config speaks of this machine."""
_REFUSED = {
    "UNSAFE_CODE": "runs code that models write, which ewq never does",
    "MULTIMODAL": "asks about images or sound, and ewq reads text only",
}


@dataclass(frozen=True)
class Documents:
    """A task of lm-eval; a group or tag of them is one task over the documents of all."""

    tasks: Mapping[str, Any]
    """lm-eval's name -> its task."""

    @cached_property
    def digest(self) -> str:
        """Of what is asked and how, wherever the files lie."""
        configs = [task.dump_config() for task in self.tasks.values()]
        kept = [{key: each[key] for key in each if key not in _ELSEWHERE} for each in configs]
        found = [kept, *(list(task.eval_docs) for task in self.tasks.values())]
        # A function's name, without its place in memory.
        plain = json.dumps(found, default=lambda value: getattr(value, "__qualname__", str(value)))
        return content_key(list(self.tasks), plain)

    def sample(self, most: int | None) -> dict[str, list[int]]:
        """At most so many documents, drawn from all alike: those of each task, in order."""
        every = [(name, i) for name, task in self.tasks.items() for i in range(len(task.eval_docs))]
        if most is not None and most < len(every):
            drawn = sorted(random.Random(SEED).sample(range(len(every)), most))
            every = [every[place] for place in drawn]
        names = dict.fromkeys(name for name, _ in every)
        return {name: [i for own, i in every if own == name] for name in names}

    def prepare(self) -> None:
        """Begin every random choice of examples anew, as lm-eval's own runs do."""
        _seed()
        for task in self.tasks.values():
            task.set_fewshot_seed(seed=SEED)


def load_documents(spec: str) -> Documents:
    """The task that ``spec`` names, or the YAML file that it is.

    A BackendUnavailable without lm_eval; an InputError of a task that is unknown, has no documents,
    cannot be loaded, asks more than text or runs what models write.
    """
    in_file = spec.endswith(FILES)
    manager = _manager(not in_file)
    if not in_file and spec not in manager.all_tasks:
        close = difflib.get_close_matches(spec, manager.all_tasks, 3)
        advice = f"did you mean {' or '.join(close)}?" if close else "name a task or a .yaml file"
        raise InputError(f"--ewq-lm-eval {spec}: lm-eval has no such task; {advice}")
    tasks = _loaded(manager, str(Path(spec).expanduser()) if in_file else spec)
    if not tasks or not all(len(task.eval_docs) for task in tasks.values()):
        raise InputError(f"lm-eval task {spec} has no documents")
    for name, task in tasks.items():
        if why := next((why for flag, why in _REFUSED.items() if getattr(task, flag, 0)), None):
            raise InputError(f"lm-eval task {name} {why}")
    return Documents(tasks)


@cache
def _manager(with_its_own: bool) -> Any:
    """lm-eval's index of tasks; that of its own takes ten seconds."""
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        install = "pip install 'ewq[lm-eval]'"
        raise BackendUnavailable(f"--ewq-lm-eval needs lm_eval ({error}): {install}") from error
    return TaskManager(include_defaults=with_its_own)


def _loaded(manager: Any, spec: str) -> Mapping[str, Any]:
    """Tasks by name, or one line for what stands in the way: file, data or a missing library."""
    from datasets.exceptions import DatasetsError
    from jinja2 import TemplateError
    from yaml import YAMLError

    try:
        _seed()
        tasks: Mapping[str, Any] = manager.load([spec])["tasks"]
        return tasks
    except (StopIteration, IndexError):
        return {}  # A task looks at its first document while it is made.
    except (
        *(OSError, ValueError, TypeError, LookupError, AttributeError, AssertionError, ImportError),
        *(DatasetsError, TemplateError, YAMLError),
    ) as error:
        said = "".join(str(error).strip().splitlines()[:1]) or type(error).__name__
        reason = f"its data have no {said}" if isinstance(error, KeyError) else said
        raise InputError(f"cannot load lm-eval task {spec}: {reason}") from error


def _seed() -> None:
    """Tasks draw from the global generators; these are lm-eval's own seeds."""
    import numpy as np

    random.seed(0)
    np.random.seed(SEED)
