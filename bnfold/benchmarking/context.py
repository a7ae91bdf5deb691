"""The machine that a benchmark ran on, and who else used it meanwhile."""

from __future__ import annotations

import os
import platform
import resource
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


@dataclass(frozen=True)
class CpuTime:
    """Readings of how long processors have worked, all in seconds since some start.

    Attributes:
        elapsed: time that passed, whatever the processors did.
        busy: time in which any process ran, of this machine as its kernel sees it.
        stolen: time that a hypervisor gave to others.
        own: time of this process and of its children that have ended.
    """

    elapsed: float
    busy: float
    stolen: float
    own: float


@dataclass(frozen=True)
class Disturbance:
    """How much others used the processors during a measurement.

    Attributes:
        others: cores kept busy by processes that are not part of the benchmark.
        stolen: cores that the hypervisor gave to other machines.
    """

    others: float
    stolen: float


@dataclass(frozen=True)
class Context:
    """Where a benchmark ran.

    Attributes:
        cpu: the processor's name.
        cores: logical processors of the machine.
        affinity: those that this process may use.
        governor: the frequency governor, where the kernel tells.
        load: the load average over 1, 5 and 15 minutes when the benchmark started, where the system tells.
        disturbance: how much others used the processors meanwhile; None where the system does not tell.
        memory_bytes: physical memory.
        system: operating system and release.
        python: version.
        bnfold: version.
        onnxruntime: version of the package that the workers imported.
    """

    cpu: str
    cores: int
    affinity: tuple[int, ...]
    governor: str | None
    load: tuple[float, float, float] | None
    disturbance: Disturbance | None
    memory_bytes: int | None
    system: str
    python: str
    bnfold: str
    onnxruntime: str

    def to_json(self) -> dict[str, object]:
        """The context as plain data."""
        disturbance = self.disturbance
        return {
            "cpu": self.cpu,
            "cores": self.cores,
            "affinity": list(self.affinity),
            "governor": self.governor,
            "load": None if self.load is None else list(self.load),
            "others_busy_cores": None if disturbance is None else disturbance.others,
            "stolen_cores": None if disturbance is None else disturbance.stolen,
            "memory_bytes": self.memory_bytes,
            "system": self.system,
            "python": self.python,
            "bnfold": self.bnfold,
            "onnxruntime": self.onnxruntime,
        }


def read_context(load: tuple[float, float, float] | None, disturbance: Disturbance | None, onnxruntime: str) -> Context:
    """Describe this machine.

    Args:
        load: what :func:`load_average` said before the benchmark put a load of its own on the machine.
        disturbance: what :func:`disturbance` found.
        onnxruntime: its version, as a worker told it.
    """
    return Context(
        cpu=_cpu_name(),
        cores=os.cpu_count() or 1,
        affinity=available_cores(),
        governor=_line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        load=load,
        disturbance=disturbance,
        memory_bytes=_memory(),
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        bnfold=metadata.version("bnfold"),
        onnxruntime=onnxruntime,
    )


def available_cores() -> tuple[int, ...]:
    """The logical processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def load_average() -> tuple[float, float, float] | None:
    """The load average over 1, 5 and 15 minutes, where the system tells."""
    try:
        return os.getloadavg()
    except OSError:
        return None


def read_cpu_time() -> CpuTime | None:
    """Read the processors' clocks, or None where ``/proc/stat`` does not exist."""
    line = _line("/proc/stat")
    if line is None:
        return None
    user, nice, system, _idle, _waiting, interrupts, soft, stolen = (int(field) / _TICKS for field in line.split()[1:9])
    own = sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )
    busy = user + nice + system + interrupts + soft
    return CpuTime(time.monotonic(), busy, stolen, own)


def disturbance(before: CpuTime | None, after: CpuTime | None) -> Disturbance | None:
    """How much others used the processors between two readings, or None if there are none."""
    if before is None or after is None or after.elapsed <= before.elapsed:
        return None
    elapsed = after.elapsed - before.elapsed
    others = (after.busy - before.busy) - (after.own - before.own)
    return Disturbance(max(0.0, others / elapsed), max(0.0, (after.stolen - before.stolen) / elapsed))


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith(("model name", "Hardware", "Model")):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _line(path: str) -> str | None:
    """The first line of a file that the system may or may not have."""
    try:
        return Path(path).read_text().partition("\n")[0].strip()
    except OSError:
        return None
