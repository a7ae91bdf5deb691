"""The machine that a benchmark ran on, and who else used it meanwhile."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import time
from dataclasses import dataclass
from datetime import UTC, datetime
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
        throttled: time for which a quota on processor time has stopped this process' control group.
    """

    elapsed: float
    busy: float
    stolen: float
    own: float
    throttled: float = 0.0


@dataclass(frozen=True)
class Disturbance:
    """How much others used the processors during a measurement.

    Attributes:
        others: cores kept busy by processes that are not part of the benchmark.
        stolen: cores that the hypervisor gave to other machines.
        throttled: seconds for which a quota stopped the benchmark's control group.
    """

    others: float
    stolen: float
    throttled: float = 0.0


@dataclass(frozen=True)
class Context:
    """Where a benchmark ran.

    Attributes:
        time: when the benchmark ended, in UTC, as ISO 8601 writes it.
        cpu: the processor's name.
        cores: logical processors of the machine.
        affinity: those that this process may use.
        quota: cores that a control group grants this process, None without a limit.
        governor: the frequency governor, where the kernel tells.
        load: the load average over 1, 5 and 15 minutes when the benchmark started, where the system tells.
        disturbance: how much others used the processors meanwhile; None where the system does not tell.
        memory_bytes: physical memory.
        available_bytes: memory that was free for new processes when this was read; None where the system does not tell.
        gpus: names and driver versions of NVIDIA devices, where their own tool tells.
        system: operating system and release.
        python: version.
        bnfold: version.
        onnxruntime: version of the package that the workers imported.
    """

    time: str
    cpu: str
    cores: int
    affinity: tuple[int, ...]
    quota: float | None
    governor: str | None
    load: tuple[float, float, float] | None
    disturbance: Disturbance | None
    memory_bytes: int | None
    available_bytes: int | None
    gpus: tuple[str, ...]
    system: str
    python: str
    bnfold: str
    onnxruntime: str

    def to_json(self) -> dict[str, object]:
        """The context as plain data."""
        disturbance = self.disturbance
        return {
            "time": self.time,
            "cpu": self.cpu,
            "cores": self.cores,
            "affinity": list(self.affinity),
            "quota_cores": self.quota,
            "governor": self.governor,
            "load": None if self.load is None else list(self.load),
            "others_busy_cores": None if disturbance is None else disturbance.others,
            "stolen_cores": None if disturbance is None else disturbance.stolen,
            "throttled_s": None if disturbance is None else disturbance.throttled,
            "memory_bytes": self.memory_bytes,
            "available_memory_bytes": self.available_bytes,
            "gpus": list(self.gpus),
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
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        cpu=cpu_name(),
        cores=os.cpu_count() or 1,
        affinity=available_cores(),
        quota=_quota(),
        governor=_line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        load=load,
        disturbance=disturbance,
        memory_bytes=_memory(),
        available_bytes=available_memory(),
        gpus=_gpus(),
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
    return CpuTime(time.monotonic(), busy, stolen, own, _throttled())


def disturbance(before: CpuTime | None, after: CpuTime | None) -> Disturbance | None:
    """How much others used the processors between two readings, or None if there are none."""
    if before is None or after is None or after.elapsed <= before.elapsed:
        return None
    elapsed = after.elapsed - before.elapsed
    others = (after.busy - before.busy) - (after.own - before.own)
    return Disturbance(
        others=max(0.0, others / elapsed),
        stolen=max(0.0, (after.stolen - before.stolen) / elapsed),
        throttled=max(0.0, after.throttled - before.throttled),
    )


def available_memory() -> int | None:
    """Memory in bytes that new processes can have without swapping; None where ``/proc/meminfo`` does not exist."""
    for line in _text("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _control_group(file: str) -> str:
    """A file of this process' control group (version 2); in a container its folder is the root."""
    own = _text("/proc/self/cgroup").rpartition("0::")[2].strip().lstrip("/")
    return _text(f"/sys/fs/cgroup/{own}/{file}") or _text(f"/sys/fs/cgroup/{file}")


def _quota() -> float | None:
    granted, _, period = _control_group("cpu.max").strip().partition(" ")
    return int(granted) / int(period) if granted.isdigit() and period.isdigit() else None


def _throttled() -> float:
    for line in _control_group("cpu.stat").splitlines():
        name, _, value = line.partition(" ")
        if name == "throttled_usec":
            return int(value) / 1e6
    return 0.0


def _gpus() -> tuple[str, ...]:
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(line.strip() for line in found.stdout.splitlines() if line.strip())


def cpu_name() -> str:
    """The processor's name."""
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
    return _text(path).partition("\n")[0].strip() or None


def _text(path: str) -> str:
    """A file that the system may or may not have; empty if not."""
    try:
        return Path(path).read_text()
    except OSError:
        return ""
