"""What each node takes, by ONNX Runtime's own profile: processes of their own, since profiling costs time."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import onnx_ir as ir

from bnfold.benchmarking import schedule
from bnfold.benchmarking.attribution import Profile
from bnfold.benchmarking.candidates import Group
from bnfold.benchmarking.kernels import Kernel
from bnfold.benchmarking.launches import Opening, crew
from bnfold.benchmarking.placement import nodes_of
from bnfold.graph import label
from bnfold.model_file import load_model, write_model

#: Each candidate runs in so many blocks, in turn with the others.
_ROUNDS = 6

#: A block runs for about so long, in seconds.
_BLOCK_S = 0.2

#: Runs in a block, at least: what the first one takes is trimmed away.
_FEWEST_RUNS = 4

#: ONNX Runtime writes about 1 kB for each node and run; no more of those than this.
_MOST_EVENTS = 40_000


def profile(group: Group, seed: Sequence[int]) -> tuple[Profile, ...]:
    """Profile every candidate of a group; raises as :func:`bnfold.benchmarking.launches.launch`."""
    # A CUDA graph is replayed as a whole: its nodes are only seen without it.
    candidates = tuple(replace(c, setting=replace(c.setting, cuda_graph=False)) for c in group.candidates)
    group = replace(group, candidates=candidates, has_control=False)
    with tempfile.TemporaryDirectory(prefix="bnfold-profile-") as name:
        folder = Path(name)
        models = [load_model(candidate.subject.path) for candidate in group.candidates]
        openings = [
            Opening(_with_names(model, candidate.subject.path, folder / f"{index}.onnx"), str(folder / f"{index}"))
            for index, (model, candidate) in enumerate(zip(models, group.candidates, strict=True))
        ]
        kernels = _run(group, openings, [len(nodes_of(model)) for model in models], seed)
        return tuple(
            Profile(candidate.label, nodes_of(model), found)
            for candidate, model, found in zip(group.candidates, models, kernels, strict=True)
        )


def _run(
    group: Group, openings: Sequence[Opening], nodes: Sequence[int], seed: Sequence[int]
) -> list[tuple[Kernel, ...]]:
    orders = schedule.rounds(len(group.candidates), seed)
    with crew(group) as team:
        records = team.open(next(orders), openings)
        for order in islice(orders, _ROUNDS):
            for index in order:
                most = _MOST_EVENTS // (_ROUNDS * max(1, nodes[index]))
                runs = max(_FEWEST_RUNS, min(most, int(_BLOCK_S / records[index].first_run_s)))
                request: dict[str, Any] = {"do": "run", "kind": "single-stream", "runs": runs, "samples": 1}
                with team.turn(index) as worker:
                    worker.ask("being profiled", request | {"lead_in_ns": 0})
        answers = [worker.ask("being profiled", {"do": "profile"}) for worker in team.workers]
    return [tuple(Kernel(**kernel) for kernel in answer["kernels"]) for answer in answers]


def _with_names(model: ir.Model, path: Path, copy: Path) -> Path:
    """The model's file, or a copy of it in which every node has a name, if in the file one has none."""
    nameless = [node for node in model.graph.all_nodes() if not node.name]
    if not nameless:
        return path
    for node in nameless:
        node.name = label(node)
    return write_model(model, copy)
