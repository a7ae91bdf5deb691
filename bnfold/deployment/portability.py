"""Which machines a model runs on: what it is made of must be known to the ONNX Runtime of whoever serves it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir

from bnfold.errors import ModelError, OptionError

#: The operators of the ONNX standard.
_STANDARD = frozenset({"", "ai.onnx", "ai.onnx.ml"})

#: Operators of ONNX Runtime alone, which each build of it has; what they compute may change with its version.
_CONTRIBUTED = "com.microsoft"

#: Operators that stand for a layout in memory, which ONNX Runtime chooses for the processor that it runs on.
_OF_ONE_PROCESSOR = "com.microsoft.nchwc"

#: The newest operators and the newest file format (IR version) that each release of ONNX Runtime reads. Later ones
#: read at least as much.
#: Source: https://onnxruntime.ai/docs/reference/compatibility.html, and onnx.helper.VERSION_TABLE.
_READS = {
    (1, 16): (19, 9),
    (1, 17): (20, 9),
    (1, 18): (21, 10),
    (1, 19): (21, 10),
    (1, 20): (21, 10),
    (1, 21): (22, 10),
}

_RELEASE = re.compile(r"(\d{1,3})\.(\d{1,3})(\.\d{1,3})?", re.ASCII)


def check_portable(model: ir.Model, label: Path, *, contributed: bool) -> tuple[str, ...]:
    """Refuse operators that only some machines have.

    Args:
        model: the model.
        label: what to call it in an error.
        contributed: whether operators of ONNX Runtime alone are allowed.

    Returns:
        The operators of ONNX Runtime alone that it holds, as ``com.microsoft.Name``.

    Raises:
        ModelError: it holds operators that are not portable; the message names them.
    """
    found = Counter(_strange_operators(model))
    fixed = sorted(name for name in found if name.startswith(f"{_OF_ONE_PROCESSOR}."))
    if fixed:
        raise ModelError(
            f"{label} holds {_listed(fixed, found)}: ONNX Runtime optimized it for one type of processor, and it runs "
            "on no other; deploy the file that it was made from"
        )
    own = sorted(name for name in found if name.rpartition(".")[0] == _CONTRIBUTED)
    others = sorted(set(found) - set(own))
    if others:
        raise ModelError(
            f"{label} holds {_listed(others, found)}, which no server has unless a library is added to it; "
            "export the model with operators of the ONNX standard"
        )
    if own and not contributed:
        raise ModelError(
            f"{label} holds {_listed(own, found)}, which are no part of the ONNX standard and may change with ONNX "
            "Runtime's version; deploy the file that it was made from, or allow them with --allow-contrib"
        )
    return tuple(own)


def _strange_operators(model: ir.Model) -> Iterator[str]:
    local = {(function.domain, function.name) for function in model.functions.values()}
    nodes = [*model.graph.all_nodes(), *(n for function in model.functions.values() for n in function.all_nodes())]
    for node in nodes:
        if node.domain not in _STANDARD and (node.domain, node.op_type) not in local:
            yield f"{node.domain}.{node.op_type}"


def _listed(names: list[str], counts: Counter[str]) -> str:
    return ", ".join(f"{name} ({counts[name]}×)" for name in names)


def check_readable(model: ir.Model, release: str, installed: str) -> str:
    """Hold a model against the ONNX Runtime of the server.

    Args:
        model: the model.
        release: the server's version of ONNX Runtime, such as ``1.20``.
        installed: the version here, which runs the model.

    Returns:
        A sentence without its full stop where it is not known; empty where the server reads it.

    Raises:
        OptionError: that is no version.
        ModelError: the server does not read the model.
    """
    wanted = _numbers(release)
    if wanted >= _numbers(installed):
        return ""
    known = [version for version in _READS if version <= wanted]
    opset, ir_version = model.opset_imports.get("", 0), model.ir_version
    reads = _READS[max(known)] if known else (0, 0)
    if opset <= reads[0] and ir_version <= reads[1]:
        return ""
    has = f"opset {opset} and IR version {ir_version}"
    if wanted in _READS:
        older = f"export it with --opset {reads[0]}" if opset > reads[0] else "save it with an older IR version"
        raise ModelError(
            f"ONNX Runtime {release} reads up to opset {reads[0]} and IR version {reads[1]}, and the model has {has}; "
            f"{older}, or use a newer server"
        )
    return f"bnfold does not know whether ONNX Runtime {release} reads {has}; try it there before you rely on it"


def _numbers(release: str) -> tuple[int, int]:
    match = _RELEASE.match(release)
    if match is None:
        raise OptionError(f"{release!r} is no version of ONNX Runtime, such as 1.20")
    return int(match[1]), int(match[2])
