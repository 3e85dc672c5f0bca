"""What a run measures, with what and where: what must be equal wherever figures meet."""

from __future__ import annotations

import hashlib
import importlib.metadata
import math
import platform
import re
import subprocess
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ewq.errors import BackendUnavailable
from ewq.files import content_key
from ewq.instruments.gpu import gpus_of, uuid_of
from ewq.instruments.processor_wait import usable_cores
from ewq.measurement import Json
from ewq.version import __version__

LIBRARIES = (
    *("torch", "transformers", "bitsandbytes", "accelerate", "llama-cpp-python"),
    *("compressed-tensors", "gptqmodel", "peft", "torchao", "lm_eval"),
)
DIFFERENCE_KEYS = ("driver", "cuda", "power_limit_w", *LIBRARIES, "ewq", "ewq_commit", "python")
"""What may differ between comparable runs, but must be said."""
DATA = " data"
"""Ends the settings that are digests of a task's data: ``mmlu data``."""

_CODE = ("ewq_code", *LIBRARIES)
_GPU = ("gpu", "driver", "cuda", "vram_bytes", "power_limit_w")
_SAME_VRAM = 0.02
"""Relative difference of total VRAM within which two cards count as the same kind (ECC, driver)."""


@dataclass(frozen=True)
class RunIdentity:
    """Known as a whole before anything is measured."""

    fingerprint: str
    settings: Mapping[str, Any]
    """Tier, sizes, tokenizer, placement, and the digest of each task's data; plain JSON."""
    environment: Mapping[str, Any]
    """``machine_info["ewq"]``: see :func:`describe`."""

    def differences(self, later: RunIdentity) -> list[str]:
        """Why figures of the two must not be compared; empty where they may be."""
        reasons = comparable(self.environment, later.environment)
        if self.fingerprint != later.fingerprint:
            reasons.append("measured another model")
        return reasons + changed_settings(self.settings, later.settings)

    def code_differences(self, later: RunIdentity) -> list[str]:
        """What besides forbids that figures of one stand in for the other's: code and libraries.

        A library that was not there had no part in what was measured.
        """
        before, now = self.environment, later.environment
        changed = [key for key in _CODE if before.get(key) not in (None, now.get(key))]
        return [f"{key} was {before.get(key)}, is {now.get(key)}" for key in changed]

    def key(self, task: str) -> str:
        """A digest that is equal only where results of ``task`` may stand in for each other."""
        others = [key for key in self.settings if key.endswith(DATA) and key != task + DATA]
        own = {key: value for key, value in self.settings.items() if key not in others}
        keys = ("device", *_hardware(self.environment), *_CODE)
        return content_key(task, self.fingerprint, own, [self.environment.get(key) for key in keys])


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Differences in what both know: runs stored by an older ewq know less."""
    changed = [key for key, value in now.items() if key in before and _differ(before[key], value)]
    if "tier" in changed and "sizes" in changed:
        changed.remove("sizes")  # they go with it
    return [f"setting {key} was {before[key]!r}, is {now[key]!r}" for key in changed]


def _differ(before: Any, now: Any) -> bool:
    """Sizes that only one of them knows are no difference."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        return any(before[key] != now[key] for key in before.keys() & now.keys())
    return bool(before != now)


def comparable(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Why figures of two environments must not be compared: other hardware did the work."""
    if _kind(a) != _kind(b):
        return [f"measured on {_kind(a)} and on {_kind(b)}"]
    keys = [key for key in _hardware(a) if key != "vram_bytes" and a.get(key) != b.get(key)]
    if keys:
        return [f"another {key}: {a.get(key)} and {b.get(key)}" for key in keys]
    # A partitioned card has the name of a whole one; its memory tells.
    found = (each.get("vram_bytes") for each in (a, b))
    sizes = [size for size in found if isinstance(size, int | float)]
    if len(sizes) < 2 or math.isclose(*sizes, rel_tol=_SAME_VRAM):
        return []
    return [f"another amount of VRAM: {sizes[0] / 1e9:.1f} GB and {sizes[1] / 1e9:.1f} GB"]


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Sentences on drivers, libraries and code that differ, for the reader to weigh."""
    changed = [key for key in DIFFERENCE_KEYS if a.get(key) != b.get(key)]
    return [f"{key}: {a.get(key)} -> {b.get(key)}" for key in changed]


def describe(device: str) -> dict[str, Json]:
    """The environment of a run, flat; what is absent is ``None``, a CUDA device an error."""
    return {
        "device": device,
        **(_gpu(device) if device.startswith("cuda") else dict.fromkeys(_GPU)),
        **{library: package_version(library) for library in LIBRARIES},
        "ewq": __version__,
        "ewq_commit": _commit(Path(__file__).parent.parent),
        "ewq_code": code_version(),
        "cpu": _cpu_name(),
        "cores": usable_cores(),
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


def code_version() -> str:
    """Digest of ewq's own Python sources: equal exactly where the measuring code is equal."""
    package = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes())
    return f"sha256:{digest.hexdigest()}"


def git_lines(folder: Path, *arguments: str) -> list[str] | None:
    """What git says; ``None`` without git, a repository, or what is asked for."""
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.check_output(
            ["git", *arguments],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
            timeout=30,
        ).splitlines()
    return None


def _gpu(device: str) -> dict[str, Json]:
    """Name and memory through torch, which knows what CUDA_VISIBLE_DEVICES did to the index."""
    import pynvml
    import torch

    if not torch.cuda.is_available():
        raise BackendUnavailable(f"device {device!r} asked for, but torch sees no CUDA device")
    gpus = [torch.cuda.get_device_properties(torch.device(name)) for name in gpus_of(device)]
    counts = Counter(sorted(gpu.name for gpu in gpus))
    names = [f"{number} x {name}" if len(gpus) > 1 else name for name, number in counts.items()]
    driver = power_limit_w = None
    # The driver does not say everything under WSL or of a partition.
    with suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        driver = str(pynvml.nvmlSystemGetDriverVersion())
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid_of(gpus[0]))
        power_limit_w = pynvml.nvmlDeviceGetPowerManagementLimit(handle) / 1000
    vram_bytes = sum(gpu.total_memory for gpu in gpus)
    facts = (", ".join(names), driver, torch.version.cuda, vram_bytes, power_limit_w)
    return dict(zip(_GPU, facts, strict=True))


def package_version(library: str) -> str | None:
    """Of an installed distribution; ``None`` where it is not."""
    with suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(library)
    return None


def _commit(folder: Path) -> str | None:
    """Commit of a checkout, ``+dirty`` where files differ; ``None`` for an installed copy."""
    head = git_lines(folder, "rev-parse", "HEAD")
    if not head:
        return None
    return head[0] + ("+dirty" if git_lines(folder, "status", "--porcelain", "--", ".") else "")


def _cpu_name() -> str | None:
    """The processor as the kernel names it; ``platform.processor()`` is empty on most Linuxes."""
    with suppress(OSError):
        known = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        if found := re.search(r"^model name\s*:\s*(.*\S)", known, re.MULTILINE):
            return found[1]
    return platform.processor() or platform.machine() or None


def _kind(environment: Mapping[str, Any]) -> str:
    return str(environment.get("device", "unknown device")).split(":", maxsplit=1)[0]


def _hardware(environment: Mapping[str, Any]) -> tuple[str, ...]:
    """What names the device that did the work."""
    return ("gpu", "vram_bytes") if _kind(environment) == "cuda" else ("cpu", "cores")
