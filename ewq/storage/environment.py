"""Where a run was measured: device, driver and library versions (``machine_info["ewq"]``)."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ewq.errors import BackendUnavailable
from ewq.instruments.gpu import gpus_of, uuid_of
from ewq.measurement import Json
from ewq.version import __version__

LIBRARIES = ("torch", "transformers", "bitsandbytes", "accelerate", "llama-cpp-python")
DIFFERENCE_KEYS = ("driver", "cuda", "power_limit_w", *LIBRARIES, "ewq", "ewq_commit", "python")
"""What may differ between comparable runs, but must be said."""

_SAME_VRAM = 0.02
"""Relative difference of total VRAM within which two cards count as the same kind (ECC, driver)."""


def describe(device: str) -> dict[str, Json]:
    """The environment of a run on ``device`` (``cpu``, ``cuda``, ``cuda:1``, ``cuda:all``).

    Flat, so that stored runs diff well; what is absent is ``None``. Imports torch only for a
    CUDA device.

    Raises:
        BackendUnavailable: a CUDA device is asked for and torch does not see it.
    """
    return {
        "device": device,
        **(_gpu(device) if device.startswith("cuda") else dict.fromkeys(_GPU_KEYS)),
        **{library: _version(library) for library in LIBRARIES},
        "ewq": __version__,
        "ewq_commit": _commit(Path(__file__).parent.parent),
        "ewq_code": code_version(),
        "cpu": _cpu_name(),
        "cores": _usable_cores(),
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


def comparable(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Why figures of two environments must not be compared; empty when they may be.

    Only the hardware that did the work counts: the GPU for a run on one, else CPU and cores.
    """
    if _kind(a) != _kind(b):
        return [f"measured on {_kind(a)} and on {_kind(b)}"]
    keys = ("gpu",) if _kind(a) == "cuda" else ("cpu", "cores")
    reasons = [
        f"another {key}: {a.get(key)} and {b.get(key)}" for key in keys if _differ(a, b, key)
    ]
    return reasons or _other_vram(a, b)


def hardware(environment: Mapping[str, Any]) -> dict[str, Json]:
    """The device that did the work: equal in two environments that are the same machine."""
    on_gpu = _kind(environment) == "cuda"
    keys = ("device", "gpu", "vram_bytes") if on_gpu else ("device", "cpu", "cores")
    return {key: environment.get(key) for key in keys}


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Sentences on drivers, libraries and code that differ, for the reader to weigh."""
    return [f"{key}: {a.get(key)} -> {b.get(key)}" for key in DIFFERENCE_KEYS if _differ(a, b, key)]


def code_version() -> str:
    """Digest of ewq's own Python sources: equal exactly where the measuring code is equal."""
    package = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes())
    return f"sha256:{digest.hexdigest()}"


_GPU_KEYS = ("gpu", "driver", "cuda", "vram_bytes", "power_limit_w")


def _gpu(device: str) -> dict[str, Json]:
    """Name and memory through torch, which knows what CUDA_VISIBLE_DEVICES did to the index."""
    import torch

    if not torch.cuda.is_available():
        raise BackendUnavailable(f"device {device!r} asked for, but torch sees no CUDA device")
    gpus = [torch.cuda.get_device_properties(torch.device(name)) for name in gpus_of(device)]
    driver, power_limit_w = _driver_facts(uuid_of(gpus[0]))
    return {
        "gpu": _names([gpu.name for gpu in gpus]),
        "driver": driver,
        "cuda": torch.version.cuda,
        "vram_bytes": sum(gpu.total_memory for gpu in gpus),
        "power_limit_w": power_limit_w,
    }


def _names(gpus: Sequence[str]) -> str:
    """One card's name; several as ``2 x NAME``, whatever their order."""
    counts = Counter(sorted(gpus))
    if len(gpus) == 1:
        return gpus[0]
    return ", ".join(f"{number} x {name}" for name, number in counts.items())


def _driver_facts(uuid: str) -> tuple[str | None, float | None]:
    """Driver version and power limit in watts; ``None`` where it does not say (WSL, MIG)."""
    import pynvml

    driver = power_limit_w = None
    try:
        pynvml.nvmlInit()
        driver = str(pynvml.nvmlSystemGetDriverVersion())
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        power_limit_w = pynvml.nvmlDeviceGetPowerManagementLimit(handle) / 1000
    except pynvml.NVMLError:
        pass
    return driver, power_limit_w


def _version(library: str) -> str | None:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit(folder: Path) -> str | None:
    """Commit of a checkout, ``+dirty`` where files differ; ``None`` for an installed copy."""
    head = git_lines(folder, "rev-parse", "HEAD")
    if not head:
        return None
    return head[0] + ("+dirty" if git_lines(folder, "status", "--porcelain", "--", ".") else "")


def git_lines(folder: Path, *arguments: str) -> list[str] | None:
    """What git says; ``None`` without git, a repository, or what is asked for."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=folder, check=True, capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.splitlines()


def _cpu_name() -> str | None:
    """The processor as the kernel names it; ``platform.processor()`` is empty on most Linuxes."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, None) or platform.processor() or platform.machine() or None


def _usable_cores() -> int:
    """Cores this process may use: a container's share, not the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _kind(environment: Mapping[str, Any]) -> str:
    return str(environment.get("device", "unknown device")).split(":", maxsplit=1)[0]


def _differ(a: Mapping[str, Any], b: Mapping[str, Any], key: str) -> bool:
    return bool(a.get(key) != b.get(key))


def _other_vram(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """A partitioned card has the name of a whole one; its memory tells."""
    first, second = a.get("vram_bytes"), b.get("vram_bytes")
    if not (isinstance(first, int | float) and isinstance(second, int | float)):
        return []
    if abs(first - second) <= _SAME_VRAM * max(first, second):
        return []
    return [f"another amount of VRAM: {first / 1e9:.1f} GB and {second / 1e9:.1f} GB"]
