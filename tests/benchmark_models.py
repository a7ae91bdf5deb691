"""Small models for the tests of the benchmark, and how to see the processes that it starts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx
import onnx.parser

RELU = """
<ir_version: 9, opset_import: ["" : 17]>
small (float[N, 3, 4] x) => (float[N, 3, 4] y) { y = Relu(x) }
"""

#: Loads, and fails in its first run: what it is given cannot take the shape that it asks for.
FAILS_TO_RUN = """
<ir_version: 9, opset_import: ["" : 17]>
fails (float[N, 3, 4] x) => (float[M, K, L] y) {
    shape = Constant<value_ints = [7, 5, 1]>()
    y = Reshape(x, shape)
}
"""


#: Fails in some of its runs: an index is drawn anew each time, and one in twenty-five does not exist.
FAILS_SOMETIMES = """
<ir_version: 9, opset_import: ["" : 17]>
fails (float[N, 3, 4] x) => (float[1, 4] y)
<float fifty = {50.0}, int64[2] shape = {-1, 4}, int64[2] count = {16, 1}> {
    draw = RandomUniform<shape = [1], seed = 1.0>()
    scaled = Mul(draw, fifty)
    index = Cast<to = 7>(scaled)
    rows = Reshape(x, shape)
    many = Tile(rows, count)
    y = Gather<axis = 0>(many, index)
}
"""

#: Loads, and never ends its first run: 2^62 turns of a loop.
HANGS = """
<ir_version: 9, opset_import: ["" : 17]>
hangs (float[N, 3, 4] x) => (float[N, 3, 4] y)
<int64 turns = {4611686018427387904}, bool go = {1}> {
    y = Loop(turns, go, x) <body = step (int64 turn, bool on, float[N, 3, 4] a) => (bool further, float[N, 3, 4] b) {
        further = Identity(on)
        b = Relu(a)
    }>
}
"""


def write(path: Path, text: str = RELU) -> Path:
    """Write a model given as ONNX text."""
    onnx.save(onnx.parser.parse_model(text), path)
    return path


def children(pid: int) -> list[int]:
    """The processes that ``pid`` has started and that still run."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(parent) == pid and state != "Z":
            found.append(int(stat.parent.name))
    return found


def running(pids: Sequence[int]) -> list[int]:
    """Those of ``pids`` that still run, stopped ones included, the dead that nobody has reaped not."""
    alive = []
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state not in "ZX":
            alive.append(pid)
    return alive


def processor_ns(pid: int) -> int:
    """The processor time that all threads of a process have used so far, in ns, as Linux' scheduler counts it."""
    return sum(int(stat.read_text().split()[0]) for stat in Path(f"/proc/{pid}/task").glob("*/schedstat"))
