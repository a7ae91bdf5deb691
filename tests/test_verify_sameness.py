"""What counts as the same graph: comparing such a pair proves nothing."""

from __future__ import annotations

import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from bnfold.verification import verify
from bnfold.verification.sameness import fingerprint, same_graph

HEAD = '<ir_version: 8, opset_import: ["" : %s]> g (float[N,2] a, float[N,2] b) => (float[N,2] y, float[N,2] z) '
CONSTANTS = "<float[2,2] w = {1, 2, 3, 4}, float[2] s = {5, 6}> "
BODY = "{ h = MatMul(a, w)  y = Add(h, s)  z = Mul(b, s) }"


def _model(body=BODY, constants=CONSTANTS, head=HEAD, opset=17):
    return ir.from_proto(onnx.parser.parse_model(head % opset + constants + body))


SAME = {
    "itself": {},
    "inner names": {"body": "{ other = MatMul(a, w)  y = Add(other, s)  z = Mul(b, s) }"},
    "names of constants": {"constants": CONSTANTS.replace("w =", "v ="), "body": BODY.replace("w)", "v)")},
    "order of nodes": {"body": "{ z = Mul(b, s)  h = MatMul(a, w)  y = Add(h, s) }"},
    "order of constants": {"constants": "<float[2] s = {5, 6}, float[2,2] w = {1, 2, 3, 4}> "},
    "a constant twice": {
        "constants": CONSTANTS.replace("> ", ", float[2] t = {5, 6}> "),
        "body": "{ h = MatMul(a, w)  y = Add(h, t)  z = Mul(b, s) }",
    },
    "a constant as a node": {
        "constants": "<float[2,2] w = {1, 2, 3, 4}> ",
        "body": "{ s = Constant <value = float[2] {5, 6}> ()  h = MatMul(a, w)  y = Add(h, s)  z = Mul(b, s) }",
    },
    "what nobody needs": {"body": "{ h = MatMul(a, w)  dead = Neg(h)  y = Add(h, s)  z = Mul(b, s) }"},
    "symbolic dimensions": {"head": HEAD.replace("N,2", "batch,2")},
    "order of inputs": {"head": HEAD.replace("(float[N,2] a, float[N,2] b)", "(float[N,2] b, float[N,2] a)")},
}

OTHER = {
    "a constant": {"constants": CONSTANTS.replace("4}", "5}")},
    "an operator": {"body": BODY.replace("Mul", "Sub")},
    "which input": {"body": "{ h = MatMul(b, w)  y = Add(h, s)  z = Mul(a, s) }"},
    "which output": {"body": "{ h = MatMul(a, w)  z = Add(h, s)  y = Mul(b, s) }"},
    "order of operands": {"body": BODY.replace("Mul(b, s)", "Mul(s, b)")},
    "opset": {"opset": 16},
    "one more operator": {"body": BODY.replace("y = Add(h, s)", "k = Add(h, s)  y = Identity(k)")},
}


@pytest.mark.parametrize("change", SAME.values(), ids=SAME)
def test_the_same_graph_in_another_guise(change):
    assert same_graph(_model(), _model(**change))
    assert verify(_model(), _model(**change)).verdict == "nothing proven"


@pytest.mark.parametrize("change", OTHER.values(), ids=OTHER)
def test_another_graph(change):
    assert not same_graph(_model(), _model(**change))


BRANCHES = (
    '<ir_version: 8, opset_import: ["" : 17]> g (float[2] x, bool c) => (float[2] y) <float[2] w = {1, 2}> '
    "{ o = Neg(x)  y = If (c) <then_branch = t () => (float[2] p) { p = Add(o, w) }, "
    "else_branch = e () => (float[2] q) { q = Mul(%s, w) }> }"
)
LOOP = (
    '<ir_version: 8, opset_import: ["" : 17]> g (float[2] x) => (float[2] y) <int64 n = {2}, bool t = {1}> '
    "{ y = Loop (n, t, x) <body = b (int64 i, bool e, float[2] v) => (bool f, float[2] r) "
    "{ f = Identity(e)  r = Loop (n, t, v) <body = d (int64 j, bool k, float[2] u) => (bool l, float[2] s) "
    "{ l = Identity(k)  s = Add(u, %s) }> }> }"
)


def test_graphs_inside_of_nodes_count():
    one, renamed, other = (
        BRANCHES % "o",
        (BRANCHES % "o").replace("float[2] p", "float[2] r").replace("{ p =", "{ r ="),
        BRANCHES % "x",
    )
    assert fingerprint(_parsed(one)) == fingerprint(_parsed(renamed))
    assert fingerprint(_parsed(one)) != fingerprint(_parsed(other))


def test_arguments_of_inner_and_outer_bodies_are_told_apart():
    assert fingerprint(_parsed(LOOP % "u")) != fingerprint(_parsed(LOOP % "v"))


def test_functions_count():
    text = (
        '<ir_version: 8, opset_import: ["" : 17, "own" : 1]> g (float[2] x) => (float[2] y) { y = own.f(x) } '
        '<domain: "own", opset_import: ["" : 17]> f (a) => (b) { b = %s(a) }'
    )
    assert fingerprint(_parsed(text % "Neg")) == fingerprint(_parsed((text % "Neg").replace("a)", "aa)")))
    assert fingerprint(_parsed(text % "Neg")) != fingerprint(_parsed(text % "Abs"))


def _parsed(text):
    return ir.from_proto(onnx.parser.parse_model(text))


def test_swapped_names_of_inputs_are_a_mismatch_and_not_the_same():
    head = '<ir_version: 8, opset_import: ["" : 17]> g (%s) => (float[N,2] y) { y = Sub(%s) }'
    one = _parsed(head % ("float[N,2] a, float[N,2] b", "a, b"))
    other = _parsed(head % ("float[N,2] b, float[N,2] a", "b, a"))
    assert verify(one, other).verdict == "mismatch"
