"""What ONNX Runtime's own profile says of each node: how long its kernel took, and on which provider."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

#: What ONNX Runtime appends to a node's name in the event of its kernel.
_SUFFIX = "_kernel_time"

#: Of a node's durations so large a share is left out at each end before they are averaged.
_TRIM = 0.1


@dataclass(frozen=True)
class Kernel:
    """A node of the graph that ONNX Runtime executes, after its own optimizations.

    Attributes:
        name: of the node, as ONNX Runtime calls it.
        op: its op type.
        provider: the execution provider that it was placed on, by ONNX Runtime's name.
        seconds: what it takes in one run: the mean over runs without the lowest and the highest tenth, since the
            profile counts whole microseconds. One that runs several times in a run (in a loop) is summed up.
        runs: in how many events it was seen.
    """

    name: str
    op: str
    provider: str
    seconds: float
    runs: int

    def to_json(self) -> dict[str, Any]:
        """The kernel as plain data."""
        return {
            "name": self.name,
            "op": self.op,
            "provider": self.provider,
            "seconds": self.seconds,
            "runs": self.runs,
        }


def read_profile(path: Path) -> tuple[Kernel, ...]:
    """Read a profile that ONNX Runtime wrote."""
    return kernels_of(json.loads(path.read_bytes()))


def kernels_of(events: Sequence[Mapping[str, Any]]) -> tuple[Kernel, ...]:
    """Each node's kernel, in the order of their first events; control flow ops are left out, their bodies count.

    Args:
        events: as in the profile, which is in the Trace Event Format of Chrome; durations in microseconds.
    """
    runs = max(1, sum(event.get("name") == "model_run" for event in events))
    found: dict[tuple[str, str, str], list[float]] = {}
    for event in events:
        name, arguments = str(event.get("name", "")), event.get("args", {})
        if event.get("cat") == "Node" and name.endswith(_SUFFIX) and arguments.get("op_name") not in _CONTROL_FLOW:
            key = (name.removesuffix(_SUFFIX), arguments["op_name"], arguments.get("provider", ""))
            found.setdefault(key, []).append(event["dur"] / 1e6)
    return tuple(
        Kernel(name, op, provider, _trimmed_mean(seconds) * max(1.0, len(seconds) / runs), len(seconds))
        for (name, op, provider), seconds in found.items()
    )


#: Their time is that of their bodies, whose nodes are events as well.
_CONTROL_FLOW = frozenset({"If", "Loop", "Scan"})


def _trimmed_mean(values: Sequence[float]) -> float:
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    cut = int(_TRIM * len(ordered))
    return float(ordered[cut : len(ordered) - cut].mean())
