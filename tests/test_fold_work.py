"""The engine's work grows with the graph, not with its square: counted in questions to the rules, not in seconds."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from folding import Array, constants, folded, model_of, norm, ops

from bnfold.fold import fold
from bnfold.fold.commute import RULES
from bnfold.fold.plan import Planner


def chain(steps: list[str], arrays: dict[str, Array], *, first: str = "", last: str = "") -> ir.Model:
    """The steps one after the other, each an op on the one value before it; ``#`` is the number of a step."""
    lines, value = [], "x"
    for number, step in enumerate(filter(None, [first, *steps, last])):
        lines.append(f"v{number} = {step.replace('(@', '(' + value).replace('#', str(number))}")
        value = f"v{number}"
    text = f"g (double[N,4,6,6] x) => (double[N,4,6,6] y) {{ {' '.join(lines)} y = Abs({value}) }}"
    return model_of(text, arrays)


def scaled(count: int, between: str, **ends: str) -> ir.Model:
    """``count`` scales with an op after each."""
    random = np.random.default_rng(0)
    factors = {f"s{number}": random.uniform(0.9, 1.1, (4, 1, 1)) for number in range(count)}
    steps = [step for number in range(count) for step in (f"Mul(@, s{number})", between)]
    return chain(steps, factors | constants(w=(4, 4, 1, 1), u=(4, 4, 1, 1)), **ends)


def normed(count: int, between: str, **ends: str) -> ir.Model:
    """``count`` batch norms with an op after each, which none of them can cross."""
    steps = ["BatchNormalization(@, scale, bias, mean, var)", between] * count
    return chain(steps, norm(4) | constants(w=(4, 4, 1, 1)), **ends)


def branched(count: int) -> ir.Model:
    """``count`` residual blocks with a batch norm that only the other summands could make room for."""
    lines = [
        f"c{n} = Conv(v{n}, w) a{n} = Sigmoid(c{n}) b{n} = BatchNormalization(a{n}, scale, bias, mean, var) "
        f"v{n + 1} = Add(b{n}, v{n})"
        for n in range(count)
    ]
    text = f"g (double[N,4,6,6] v0) => (double[N,4,6,6] y) {{ {' '.join(lines)} y = Abs(v{count}) }}"
    return model_of(text, norm(4) | constants(w=(4, 4, 1, 1)))


def shared(count: int) -> ir.Model:
    """``count`` sums of one value, each with a batch norm that this value could make room for but for one reader."""
    lines = [
        f"c{n} = Conv(v, w) a{n} = Sigmoid(c{n}) b{n} = BatchNormalization(a{n}, scale, bias, mean, var) "
        f"s{n} = Add(b{n}, v) d{n} = Conv(s{n}, w)"
        for n in range(count)
    ]
    ends = ", ".join(f"d{n}" for n in range(count))
    text = (
        f"g (double[N,4,6,6] x) => (double[N,4,6,6] y) "
        f"{{ v = Conv(x, w) {' '.join(lines)} e = Sigmoid(v) y = Max(e, {ends}) }}"
    )
    return model_of(text, norm(4) | constants(w=(4, 4, 1, 1)))


CASES: dict[str, Callable[[int], ir.Model]] = {
    "scales behind a conv, across Identity": lambda n: scaled(n, "Identity(@)", first="Conv(@, w)"),
    "scales behind a conv, across Relu": lambda n: scaled(n, "Relu(@)", first="Conv(@, w)"),
    "scales before a conv, across Identity": lambda n: scaled(n, "Identity(@)", last="Conv(@, w)"),
    "scales with nowhere to go": lambda n: scaled(n, "Identity(@)"),
    "batch norms behind a conv": lambda n: normed(n, "Relu(@)", first="Conv(@, w)"),
    "batch norms with nowhere to go": lambda n: normed(n, "Sigmoid(@)"),
    "batch norms before sums with nowhere to go": branched,
    "batch norms before sums with one value": shared,
}


def questions(model: ir.Model, monkeypatch: pytest.MonkeyPatch) -> int:
    """How often the engine looks at an op on a path, while it folds the model."""
    asked: list[str] = []
    with monkeypatch.context() as patch:
        for method in ("leave", "enter"):
            inner = getattr(Planner, method)
            patch.setattr(
                Planner, method, lambda *args, name=method, inner=inner: (asked.append(name), inner(*args))[1]
            )
        fold(model)
    return len(asked)


@pytest.mark.parametrize("name", CASES)
def test_work_grows_with_the_graph(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    few, many = (questions(CASES[name](count), monkeypatch) for count in (100, 400))
    assert 0 < many < 6 * few  # the square would be sixteen times as much


@pytest.mark.parametrize("between", ["Identity", "Relu"])
def test_affines_far_from_what_absorbs_them_get_there(between: str) -> None:
    assert between in RULES
    steps = ["Mul(@, s)", *[f"{between}(@)"] * 300, "Mul(@, t)", *[f"{between}(@)"] * 40, "Mul(@, s)"]
    arrays = constants(w=(4, 4, 1, 1), poss=(4, 1, 1), post=(4, 1, 1))
    renamed = {name.removeprefix("pos"): array for name, array in arrays.items()}
    for end in ("first", "last"):
        copy, report = folded(chain(steps, renamed, **{end: "Conv(@, w)"}))
        assert ops(copy).get("Mul", 0) == 0
        assert [record.fate for record in report.records] == ["folded"] * 3
