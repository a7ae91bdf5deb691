# ruff: noqa: E501  # a graph in a table is one line of ONNX text
"""Small graphs for the comparison with other optimizers: one for each claim of the algebra, and for each known trap.

A case is a line of ONNX text. Its constants carry their shape in their name, ``w_4x4x3x3``, and are drawn from it;
the first letter says how: ``v`` and ``p`` are positive, ``o`` is all ones, ``z`` all zeros, ``q`` holds 8-bit integers,
and anything else is normal. (ONNX text has float16 constants as bits.) ``BN(c)`` stands for a batch norm of four
channels, ``BN8b(c)`` for one of eight whose parameters differ from those of ``BN8(c)``.

``nodes`` is the size of the smallest exact graph that is known, ``Constant`` not counted: what the algebra of
docs/architecture.md gives by hand, without more multiply-adds than before.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray

_CONSTANT = re.compile(r"\b([a-z]+)_((?:\d+x)*\d*)\b")
_BATCH_NORM = re.compile(r"\bBN(\d*)([a-z]*)\((\w+)\)")
_DTYPES = {"float": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "double": np.float64}

#: Inputs and outputs that several cases have.
SAME = "float[N,4,8,8] x) => (float[N,4,8,8] y"
VALID = "float[N,4,8,8] x) => (float[N,4,6,6] y"
HALF = "float[N,4,8,8] x) => (float[N,4,4,4] y"
TWO = "float[N,4,8,8] x, float[N,4,8,8] u) => (float[N,4,8,8] y"
FLAT = "float[N,4] x) => (float[N,4] y"
ROWS = "float[N,3,4] x) => (float[N,3,4] y"


@dataclass(frozen=True)
class Case:
    """One small graph.

    Attributes:
        group: the claim that it belongs to.
        name: what it shows.
        body: the nodes, as ONNX text.
        nodes: of the smallest exact graph that is known.
        norms: batch norms in it.
        signature: inputs and outputs, as ONNX text.
        constants: those with given values, as ONNX text.
        opset: of the default domain.
        ir_version: of the file.
        dtype: of the drawn constants.
        wide: first letters of constants that are float32 all the same.
        functions: local functions, as ONNX text.
        override: an input that has a default value, and of which a caller feeds another.
    """

    group: str
    name: str
    body: str
    nodes: int
    norms: int = 0
    signature: str = SAME
    constants: str = ""
    opset: int = 17
    ir_version: int = 8
    dtype: str = "float"
    wide: str = ""
    functions: str = ""
    override: str = ""

    def model(self) -> onnx.ModelProto:
        """The model, checked."""
        local = ', "local": 1' if self.functions else ""
        inline = f"<{self.constants}>" if self.constants else ""
        body = _BATCH_NORM.sub(_spelled_out, self.body)
        head = f'<ir_version: {self.ir_version}, opset_import: ["": {self.opset}{local}]>'
        model = onnx.parser.parse_model(f"{head} g ({self.signature}) {inline} {{ {body} }} {self.functions}")
        for name, array in self._drawn(f"{self.signature} {body}").items():
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        if self.ir_version < 4:  # where every initializer is an input, too
            model.graph.input.extend(_as_input(tensor) for tensor in model.graph.initializer)
        onnx.checker.check_model(model)
        return model

    def _drawn(self, text: str) -> dict[str, NDArray[np.generic]]:
        """Random constants for the names in ``text``."""
        made: dict[str, NDArray[np.generic]] = {}
        for name, kind, sizes in sorted({(match[0], match[1], match[2]) for match in _CONSTANT.finditer(text)}):
            random = np.random.default_rng(zlib.crc32(name.encode()))
            shape = tuple(int(size) for size in sizes.split("x") if size)
            dtype = np.float32 if kind[0] in self.wide else _DTYPES[self.dtype]
            match kind[0]:
                case "q":
                    made[name] = random.integers(-127, 128, shape).astype(np.int8)
                case "o":
                    made[name] = np.ones(shape, dtype)
                case "z":
                    made[name] = np.zeros(shape, dtype)
                case "v" | "p":
                    made[name] = random.uniform(0.5, 2.0, shape).astype(dtype)
                case _:
                    made[name] = random.normal(size=shape).astype(dtype)
        return made


def _spelled_out(match: re.Match[str]) -> str:
    channels, suffix, value = match[1] or "4", match[2], match[3]
    return f"BatchNormalization({value}, " + ", ".join(f"{kind}{suffix}_{channels}" for kind in "ghmv") + ")"


def _as_input(tensor: onnx.TensorProto) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)


_TRAINING = "y, r, s = BatchNormalization<training_mode=1>(c, g_4, h_4, m_4, v_4)"
_POSITIVE = "BatchNormalization(c, p_4, h_4, m_4, v_4)"
_BLOCK = "a = Conv<pads=[1,1,1,1]>(x, w_4x4x3x3) "

AFTER = "after a linear op"
BEFORE = "before a linear op"
ACROSS = "across other ops"
COLLAPSE = "into one affine"
PARALLEL = "parallel branches"
CONSECUTIVE = "ops in a row"
CONSTANTS = "computed constants"
SCOPES = "scopes"
TYPES = "types and versions"
TRAPS = "traps: nothing to fold"
NAMES = "sharing and interfaces"

CASES: tuple[Case, ...] = (
    Case(AFTER, "Conv", "c = Conv(x, w_4x4x3x3) y = BN(c)", 1, signature=VALID),
    Case(AFTER, "Conv with a bias", "c = Conv(x, w_4x4x3x3, b_4) y = BN(c)", 1, signature=VALID),
    Case(AFTER, "Conv whose bias is the empty name", 'c = Conv(x, w_4x4x3x3, "") y = BN(c)', 1, signature=VALID),
    Case(AFTER, "Conv, 1-D", "c = Conv(x, w_4x3x3) y = BN(c)", 1, signature="float[N,3,8] x) => (float[N,4,6] y"),
    Case(AFTER, "Conv, 3-D", "c = Conv(x, w_4x3x3x1x2) y = BN(c)", 1, signature="float[N,3,6,6,6] x) => (float[N,4,4,6,5] y"),
    Case(AFTER, "Conv, grouped", "c = Conv<group=2>(x, w_4x2x3x3) y = BN(c)", 1, signature=VALID),
    Case(AFTER, "Conv, depthwise ×2", "c = Conv<group=4>(x, w_8x1x3x3) y = BN8(c)", 1, signature="float[N,4,8,8] x) => (float[N,8,6,6] y"),
    Case(AFTER, "Conv, padded, strided, dilated", "c = Conv<pads=[2,2,2,2],strides=[2,2],dilations=[2,2]>(x, w_4x4x3x3) y = BN(c)", 1, signature=HALF),
    Case(AFTER, "Conv, auto_pad", 'c = Conv<auto_pad="SAME_UPPER">(x, w_4x4x3x3) y = BN(c)', 1),
    Case(AFTER, "ConvTranspose, grouped", "c = ConvTranspose<group=2,strides=[2,2]>(x, w_4x3x3x3, b_6) y = BN6(c)", 1, signature="float[N,4,5,5] x) => (float[N,6,11,11] y"),
    Case(AFTER, "ConvTranspose without a bias", "c = ConvTranspose(x, w_4x3x3x3) y = BN3(c)", 1, signature="float[N,4,5,5] x) => (float[N,3,7,7] y"),
    Case(AFTER, "Gemm", "c = Gemm<transB=1>(x, w_4x4, b_4) y = BN(c)", 1, signature=FLAT),
    Case(AFTER, "Gemm, alpha and beta", "c = Gemm<alpha=0.5,beta=2.0>(x, w_4x4, b_4) y = BN(c)", 1, signature=FLAT),
    Case(AFTER, "Gemm, scalar bias", "c = Gemm<beta=2.0>(x, w_4x4, b_) y = BN(c)", 1, signature=FLAT),
    Case(AFTER, "Gemm, bias of two axes", "c = Gemm<beta=0.5>(x, w_4x4, b_3x4) y = BN(c)", 1, signature="float[3,4] x) => (float[3,4] y"),
    Case(AFTER, "Gemm, a bias for each row", "c = Gemm(x, w_4x4, b_3x1) y = BN(c)", 1, signature="float[3,4] x) => (float[3,4] y"),
    Case(AFTER, "Gemm without a bias", "c = Gemm<alpha=3.0>(x, w_4x4) y = BN(c)", 1, signature=FLAT),
    Case(AFTER, "MatMul", "c = MatMul(x, w_4x4) y = BN(c)", 1, signature=FLAT),
    Case(AFTER, "MatMul and Add", "d = MatMul(x, w_4x4) c = Add(b_4, d) y = BN(c)", 1, signature=FLAT),
    Case(AFTER, "MatMul, Transpose", "d = MatMul(x, w_4x4) c = Transpose<perm=[0,2,1]>(d) y = BN(c)", 3, signature="float[N,3,4] x) => (float[N,4,3] y"),
    Case(AFTER, "MatMul and a scale", "c = MatMul(x, w_4x4) y = Mul(c, k_4)", 1, signature=ROWS),
    Case(AFTER, "MatMul, split into channels and pixels", "c = MatMul(x, w_4x64) r = Reshape(c, s) y = BN(r)", 2, signature="float[N,4] x) => (float[M,4,4,4] y", constants="int64[4] s = {-1, 4, 4, 4}"),
    Case(AFTER, "DeformConv", "c = DeformConv(x, w_4x4x3x3, o) y = BN(c)", 1, signature="float[N,4,8,8] x, float[N,18,6,6] o) => (float[N,4,6,6] y", opset=19, ir_version=9),
    Case(AFTER, "Conv behind a Pad of its own", "p = Pad(x, a) c = Conv<strides=[2,2]>(p, w_4x4x3x3) y = BN(c)", 1, signature=HALF, constants="int64[8] a = {0, 0, 1, 1, 0, 0, 1, 1}"),
    Case(AFTER, "Conv and a scale", "c = Conv(x, w_4x4x3x3) y = Mul(c, k_4x1x1)", 1, signature=VALID),
    Case(AFTER, "Conv, scaled and shifted", "c = Conv(x, w_4x4x3x3, b_4) d = Mul(c, k_4x1x1) y = Add(d, l_1x4x1x1)", 1, signature=VALID),
    Case(AFTER, "Conv and a scalar", "c = Conv(x, w_4x4x3x3, b_4) y = Mul(k_, c)", 1, signature=VALID),
    Case(AFTER, "Conv and a divisor", "c = Conv(x, w_4x4x3x3, b_4) y = Div(c, p_4x1x1)", 1, signature=VALID),
    Case(AFTER, "constant minus Conv", "c = Conv(x, w_4x4x3x3, b_4) y = Sub(k_4x1x1, c)", 1, signature=VALID),
    Case(AFTER, "chain of constants on either side", "c = Conv(x, w_4x4x3x3) d = Sub(k_4x1x1, c) e = Div(d, p_1x4x1x1) f = Neg(e) y = Mul(l_4x1x1, f)", 1, signature=VALID),
    Case(AFTER, "two batch norms in a row", "c = Conv(x, w_4x4x3x3) d = BN(c) y = BNb(d)", 1, signature=VALID),
    Case(AFTER, "decomposed batch norm", "c = Conv(x, w_4x4x3x3) d = Sub(c, m_4x1x1) s = Add(v_4x1x1, e) r = Sqrt(s) f = Div(d, r) i = Mul(f, g_4x1x1) y = Add(i, h_4x1x1)", 1, signature=VALID, constants="float e = {0.001}"),
    Case(AFTER, "epsilon absent, tiny variance", "c = Conv(x, w_4x4x3x3) y = BatchNormalization(c, g_4, h_4, m_4, t)", 1, signature=VALID, constants="float[4] t = {1e-6, 2e-6, 1e-6, 3e-6}"),
    Case(BEFORE, "Conv", "d = BN(x) y = Conv(d, w_4x4x3x3)", 1, signature=VALID),
    Case(BEFORE, "Conv, grouped, with a bias", "d = BN(x) y = Conv<group=2>(d, w_4x2x3x3, b_4)", 1, signature=VALID),
    Case(BEFORE, "padded Conv, scale only", "d = Mul(x, k_4x1x1) y = Conv<pads=[1,1,1,1]>(d, w_4x4x3x3)", 1),
    Case(BEFORE, "1×1 Conv whose auto_pad never pads", 'd = BN(x) y = Conv<auto_pad="SAME_LOWER",strides=[2,2]>(d, w_4x4x1x1)', 1, signature=HALF),
    Case(BEFORE, "mean and deviation of an image", "a = Sub(x, m_1x4x1x1) d = Div(a, p_1x4x1x1) y = Conv(d, w_4x4x3x3, b_4)", 1, signature=VALID),
    Case(BEFORE, "ConvTranspose, scale only", "d = Mul(x, k_4x1x1) y = ConvTranspose<group=2,strides=[2,2]>(d, w_4x3x3x3)", 1, signature="float[N,4,5,5] x) => (float[N,6,11,11] y"),
    Case(BEFORE, "1×1 ConvTranspose", "d = BN(x) y = ConvTranspose(d, w_4x4x1x1)", 1),
    Case(BEFORE, "Gemm, alpha and beta", "d = BN(x) y = Gemm<alpha=0.5,beta=3.0,transB=1>(d, w_4x4, b_4)", 1, signature=FLAT),
    Case(BEFORE, "Gemm, transA", "d = Mul(x, k_4x1) y = Gemm<transA=1>(d, w_4x4)", 1, signature="float[4,3] x) => (float[3,4] y"),
    Case(BEFORE, "MatMul and Add", "d = BN(x) e = MatMul(d, w_4x4) y = Add(e, b_4)", 1, signature=FLAT),
    Case(BEFORE, "MatMul, scale only", "d = Div(x, p_4) y = MatMul(d, w_4x4)", 1, signature=ROWS),
    Case(BEFORE, "two Convs that both accept", "d = BN(x) y = Conv(d, w_4x4x3x3) z = Conv(d, w_2x4x1x1)", 2, signature="float[N,4,8,8] x) => (float[N,4,6,6] y, float[N,2,8,8] z"),
    Case(BEFORE, "Flatten and Gemm", "d = BN(x) e = Flatten(d) y = Gemm(e, w_16x4)", 2, signature="float[N,4,2,2] x) => (float[N,4] y"),
    Case(BEFORE, "Reshape and Gemm, of an open batch", "r = Relu(x) d = BN(r) e = Reshape(d, s) y = Gemm(e, w_16x4)", 3, signature="float[N,4,2,2] x) => (float[M,4] y", constants="int64[2] s = {-1, 16}"),
    Case(BEFORE, "LSTM", "t = Transpose<perm=[0,2,1]>(x) d = BN(t) e = Transpose<perm=[0,2,1]>(d) y = LSTM<hidden_size=3>(e, w_1x12x4, r_1x12x3)", 1, signature="float[T,N,4] x) => (float[T,1,N,3] y"),
    Case(ACROSS, "Dropout", "d = Conv(x, w_4x4x3x3) c = Dropout(d) y = BN(c)", 1, signature=VALID),
    Case(ACROSS, "AveragePool", "d = Conv<pads=[1,1,1,1]>(x, w_4x4x3x3) c = AveragePool<kernel_shape=[2,2],strides=[2,2]>(d) y = BN(c)", 2, signature=HALF),
    Case(ACROSS, "AveragePool that leaves its padding out", "d = Conv(x, w_4x4x1x1) c = AveragePool<kernel_shape=[3,3],pads=[1,1,1,1]>(d) y = BN(c)", 2),
    Case(ACROSS, "GlobalAveragePool", "d = Conv(x, w_4x4x3x3) c = GlobalAveragePool(d) y = BN(c)", 2, signature="float[N,4,8,8] x) => (float[N,4,1,1] y"),
    Case(ACROSS, "ReduceMean", "d = Conv(x, w_4x4x3x3) c = ReduceMean<axes=[2,3],keepdims=0>(d) y = BN(c)", 2, signature="float[N,4,8,8] x) => (float[N,4] y"),
    Case(ACROSS, "MaxPool, no negative scale", f"d = Conv<pads=[1,1,1,1]>(x, w_4x4x3x3) c = MaxPool<kernel_shape=[2,2],strides=[2,2]>(d) y = {_POSITIVE}", 2, signature=HALF),
    Case(ACROSS, "Relu, positive scale", "d = Conv(x, w_4x4x3x3) c = Relu(d) y = Mul(c, p_4x1x1)", 2, signature=VALID),
    Case(ACROSS, "PRelu, positive scale", "d = Conv(x, w_4x4x3x3) c = PRelu(d, k_4x1x1) y = Mul(c, p_4x1x1)", 2, signature=VALID),
    Case(ACROSS, "Add of two Convs", "d = Conv(x, w_4x4x3x3) e = Conv(u, wb_4x4x3x3) c = Add(d, e) y = BN(c)", 3, signature=TWO.replace("8,8] y", "6,6] y")),
    Case(ACROSS, "Sub of two Convs", "d = Conv(x, w_4x4x3x3, b_4) e = Conv(u, wb_4x4x3x3) c = Sub(d, e) y = BN(c)", 3, signature=TWO.replace("8,8] y", "6,6] y")),
    Case(ACROSS, "Concat of channels", "d = Conv(x, w_4x4x3x3) e = Conv(u, wb_4x4x3x3) c = Concat<axis=1>(d, e) y = BN8(c)", 3, signature=TWO.replace("4,8,8] y", "8,6,6] y")),
    Case(ACROSS, "Concat of rows", "d = Conv(x, w_4x4x1x1) e = Conv(u, wb_4x4x1x1) c = Concat<axis=2>(d, e) y = BN(c)", 3, signature=TWO.replace("4,8,8] y", "4,16,8] y")),
    Case(ACROSS, "Transpose", "d = Conv(x, w_4x4x3x3) c = Transpose<perm=[0,2,3,1]>(d) e = Mul(c, k_4) y = Add(e, l_4)", 2, signature="float[N,4,8,8] x) => (float[N,6,6,4] y"),
    Case(ACROSS, "Reshape of pixels", "d = Conv(x, w_4x4x3x3) c = Reshape(d, s) y = BN(c)", 2, signature="float[N,4,8,8] x) => (float[N,4,36] y", constants="int64[3] s = {0, 4, -1}"),
    Case(ACROSS, "Unsqueeze", "d = Conv(x, w_4x4x3) c = Unsqueeze(d, s) y = BN(c)", 2, signature="float[N,4,8] x) => (float[N,4,6,1] y", constants="int64[1] s = {3}"),
    Case(ACROSS, "DepthToSpace", "d = Conv(x, w_16x4x1x1) c = DepthToSpace<blocksize=2>(d) y = BN(c)", 2, signature="float[N,4,8,8] x) => (float[N,4,16,16] y"),
    Case(ACROSS, "Slice of channels", "d = Conv(x, w_8x4x1x1) c = Slice(d, s, e, a) y = BN(c)", 2, constants="int64[1] s = {2}, int64[1] e = {6}, int64[1] a = {1}"),
    Case(ACROSS, "Gather of channels", "d = Conv(x, w_8x4x1x1) c = Gather<axis=1>(d, i) y = BN(c)", 2, constants="int64[4] i = {3, -1, 0, 5}"),
    Case(ACROSS, "Split, then a Conv for each part", "a = Tanh(x) b = BN(a) c, d = Split<axis=1>(b, s) y = Conv(c, w_4x1x1x1) z = Conv(d, w_4x3x1x1)", 4, signature="float[N,4,8,8] x) => (float[N,4,8,8] y, float[N,4,8,8] z", constants="int64[2] s = {1, 3}"),
    Case(ACROSS, "Pad by copies", 'd = Conv(x, w_4x4x3x3) c = Pad<mode="edge">(d, s) y = BN(c)', 2, constants="int64[8] s = {0, 0, 1, 1, 0, 0, 1, 1}"),
    Case(ACROSS, "Resize", 'd = Conv(x, w_4x4x3x3) c = Resize<mode="linear">(d, "", s) y = BN(c)', 2, signature="float[N,4,8,8] x) => (float[N,4,12,12] y", constants="float[4] s = {1, 1, 2, 2}"),
    Case(ACROSS, "pool, then Conv", "a = Tanh(x) b = BN(a) c = AveragePool<kernel_shape=[2,2],strides=[2,2]>(b) y = Conv(c, w_4x4x1x1)", 3, signature=HALF),
    Case(ACROSS, "Concat, as in DenseNet", "a = Conv(x, w_4x4x1x1) d = Tanh(u) c = Concat<axis=1>(a, d) b = BN8(c) y = Conv(b, w_4x8x1x1)", 4, signature=TWO),
    Case(ACROSS, "from Concat to the head", "d = Conv(x, w_4x4x3x3) e = Conv(u, wb_4x4x3x3) c = Concat<axis=1>(d, e) n = BN8(c) p = GlobalAveragePool(n) f = Flatten(p) y = Gemm(f, w_8x4)", 6, signature=TWO.replace(",8,8] y", "] y")),
    Case(COLLAPSE, "batch norm, scale, shift", "a = Tanh(x) b = BN(a) c = Mul(b, k_4x1x1) d = Add(c, l_4x1x1) y = Tanh(d)", 3, 1),
    Case(COLLAPSE, "scales", "a = Tanh(x) b = Mul(a, k_4x1x1) c = Div(b, p_4x1x1) y = Tanh(c)", 3),
    Case(COLLAPSE, "what changes nothing", "a = Tanh(x) b = Mul(a, o_4x1x1) c = Add(b, z_1) y = Tanh(c)", 2),
    Case(PARALLEL, "identity", _BLOCK + "y = Add(a, x)", 1),
    Case(PARALLEL, "RepVGG", _BLOCK + "e = BN(a) d = Conv(x, w_4x4x1x1) f = BNb(d) h = BNc(x) s = Add(e, f) t = Add(s, h) y = Relu(t)", 2),
    Case(PARALLEL, "RepVGG, stride 2", "a = Conv<pads=[1,1,1,1],strides=[2,2]>(x, w_4x4x3x3) e = BN(a) d = Conv<strides=[2,2]>(x, w_4x4x1x1) f = BNb(d) y = Add(e, f)", 1, signature=HALF),
    Case(PARALLEL, "MobileOne, depthwise", "a = Conv<pads=[1,1,1,1],group=4>(x, w_4x1x3x3) e = BN(a) b = Conv<pads=[1,1,1,1],group=4>(x, wb_4x1x3x3) f = BNb(b) c = Conv<group=4>(x, w_4x1x1x1) i = BNc(c) j = BNd(x) y = Sum(e, f, i, j)", 1),
    Case(PARALLEL, "ACNet", _BLOCK + "e = BN(a) d = Conv<pads=[1,0,1,0]>(x, w_4x4x3x1) f = BNb(d) c = Conv<pads=[0,1,0,1]>(x, w_4x4x1x3) i = BNc(c) s = Add(e, f) y = Add(s, i)", 1),
    Case(PARALLEL, "Diverse Branch Block, 1×1 and k×k", "a = Conv(x, w_4x4x3x3) d = Conv(x, w_4x4x1x1) e = BN(d) f = Conv(e, wb_4x4x3x3) h = BNb(f) y = Add(a, h)", 1, signature=VALID),
    Case(PARALLEL, "Diverse Branch Block, average pool", "a = Conv(x, w_4x4x3x3) d = Conv(x, w_4x4x1x1) e = BN(d) f = AveragePool<kernel_shape=[3,3]>(e) h = BNb(f) y = Add(a, h)", 1, signature=VALID),
    Case(PARALLEL, "two of a size", "a = Conv(x, w_4x4x3x3, b_4) d = Conv(x, wb_4x4x3x3) y = Sub(a, d)", 1, signature=VALID),
    Case(PARALLEL, "auto_pad beside explicit pads", 'a = Conv<auto_pad="SAME_UPPER">(x, w_4x4x2x2) d = Conv(x, w_4x4x1x1) y = Add(a, d)', 1),
    Case(PARALLEL, "groups in dense", _BLOCK + "d = Conv<pads=[1,1,1,1],group=2>(x, w_4x2x3x3) y = Add(a, d)", 1),
    Case(PARALLEL, "Gemm and Gemm", "a = Gemm<alpha=0.5,transB=1>(x, w_4x4, b_4) d = Gemm<beta=2.0>(x, wb_4x4, c_4) y = Add(a, d)", 1, signature=FLAT),
    Case(PARALLEL, "Gemm and the identity", "a = Gemm(x, w_4x4, b_4) y = Add(a, x)", 1, signature=FLAT),
    Case(CONSECUTIVE, "1×1 → k×k", "a = Conv(x, w_4x4x1x1, b_4) y = Conv(a, w_4x4x3x3, c_4)", 1, signature=VALID),
    Case(CONSECUTIVE, "k×k → 1×1, a batch norm between", _BLOCK + "b = BN(a) y = Conv(b, w_4x4x1x1, b_4)", 1),
    Case(CONSECUTIVE, "1×1 → padded k×k, no bias", "a = Conv(x, w_4x4x1x1) y = Conv<pads=[1,1,1,1]>(a, w_4x4x3x3)", 1),
    Case(CONSECUTIVE, "Gemm → Gemm", "a = Gemm<alpha=2.0>(x, w_4x16) y = Gemm<alpha=0.5>(a, w_16x4, b_4)", 1, signature=FLAT),
    Case(CONSECUTIVE, "MatMul, bias, MatMul, bias", "a = MatMul(x, w_4x4) d = Add(a, b_4) e = MatMul(d, wb_4x4) y = Add(e, c_4)", 2, signature=ROWS),
    Case(CONSTANTS, "bias of torch's raw export", "n = Shape<start=0,end=1>(w_4x4x3x3) m = Expand(k, n) z = CastLike(m, x) c = Conv(x, w_4x4x3x3, z) y = BN(c)", 1, signature=VALID, constants="float[1] k = {0.0}"),
    Case(CONSTANTS, "weight through Identity", "a = Identity(w_4x4x3x3) c = Conv(x, a) y = BN(c)", 1, signature=VALID),
    Case(CONSTANTS, "weight through Reshape", "a = Reshape(w_4x36, s) c = Conv(x, a) y = BN(c)", 1, signature=VALID, constants="int64[4] s = {4, 4, 3, 3}"),
    Case(CONSTANTS, "variance through ConstantOfShape", "a = ConstantOfShape<value = float[1] {2.0}>(s) c = Conv(x, w_4x4x3x3) y = BatchNormalization(c, g_4, h_4, m_4, a)", 1, signature=VALID, constants="int64[1] s = {4}"),
    Case(SCOPES, "branch of an If", "y = If (f) <then_branch = t () => (float[N,4,6,6] p) { c = Conv(x, w_4x4x3x3) p = BN(c) }, else_branch = e () => (float[N,4,6,6] q) { q = Conv(x, wb_4x4x3x3) }>", 3, signature="float[N,4,8,8] x, bool f) => (float[N,4,6,6] y"),
    Case(SCOPES, "body of a Loop", "y = Loop (n, t, x) <body = l (int64 i, bool f, float[N,4,8,8] a) => (bool d, float[N,4,8,8] b) { d = Identity(f) c = Conv<pads=[1,1,1,1]>(a, w_4x4x3x3) e = BN(c) b = Tanh(e) }>", 4, constants="int64 n = {2}, bool t = {1}"),
    Case(SCOPES, "local function", "y = local.block(x, w_4x4x3x3, g_4, h_4, m_4, v_4)", 1, signature=VALID, functions='<domain: "local", opset_import: ["": 17]> block (x, w, g, h, m, v) => (y) { c = Conv(x, w) y = BatchNormalization(c, g, h, m, v) }'),
    Case(TYPES, "opset 7", "c = Conv(x, w_4x4x3x3) y = BN(c)", 1, signature=VALID, opset=7, ir_version=4),
    Case(TYPES, "IR version 3", "c = Conv(x, w_4x4x3x3) y = BN(c)", 1, signature=VALID, opset=9, ir_version=3),
    Case(TYPES, "opset 22", "c = Conv(x, w_4x4x3x3) y = BN(c)", 1, signature=VALID, opset=22, ir_version=10),
    Case(TYPES, "float16", "c = Conv(x, w_4x4x3x3) y = BN(c)", 1, signature=VALID.replace("float", "float16"), dtype="float16"),
    Case(TYPES, "float16 with float32 statistics", "c = Conv(x, w_4x4x3x3) y = BN(c)", 1, signature=VALID.replace("float", "float16"), dtype="float16", wide="ghmv"),
    Case(TYPES, "float16, several folds into one weight", "c = Conv(x, w_4x4x3x3) d = BN(c) e = BNb(d) f = Mul(e, k_4x1x1) y = Mul(f, l_4x1x1)", 1, signature=VALID.replace("float", "float16"), dtype="float16"),
    Case(TYPES, "bfloat16", "c = Conv(x, w_4x4x3x3) y = BN(c)", 1, signature=VALID.replace("float", "bfloat16"), dtype="bfloat16", opset=22, ir_version=10),
    Case(TYPES, "double", "c = Conv(x, w_4x4x3x3) y = BN(c)", 1, signature=VALID.replace("float", "double"), dtype="double"),
    Case(TYPES, "float16, 100 times a mean of 1000", "c = Conv(x, w_4x4x3x3, b) y = BatchNormalization(c, k, h_4, b, o_4)", 1, signature=VALID.replace("float", "float16"), dtype="float16", constants="float16[4] k = {22080, 22080, 22080, 22080}, float16[4] b = {25552, 25552, 25552, 25552}"),
    Case(TYPES, "weight of 8 bits", "a = DequantizeLinear<axis=0>(q_4x4x3x3, p_4) c = Conv(x, a) y = BatchNormalization(c, pb_4, h_4, m_4, v_4)", 2, signature=VALID),
    Case(TRAPS, "training_mode", "c = Conv(x, w_4x4x3x3) " + _TRAINING, 2, 1, signature=VALID),
    Case(TRAPS, "training_mode, statistics are outputs", "c = Conv(x, w_4x4x3x3) " + _TRAINING, 2, 1, signature=VALID + ", float[4] r, float[4] s"),
    Case(TRAPS, "statistics of each pixel (spatial=0)", "c = Conv(x, w_4x4x3x3) y = BatchNormalization<spatial=0>(c, g_4x6x6, h_4x6x6, m_4x6x6, v_4x6x6)", 2, 1, signature=VALID, opset=7, ir_version=4),
    Case(TRAPS, "MatMul normalized on its rows", "c = MatMul(x, w_4x4) y = BN(c)", 2, 1, signature="float[N,4,4] x) => (float[N,4,4] y"),
    Case(TRAPS, "MatMul, Transpose, another axis", "d = MatMul(x, w_4x4) c = Transpose<perm=[0,2,1,3]>(d) y = BN(c)", 3, 1, signature="float[N,4,4,4] x) => (float[N,4,4,4] y"),
    Case(TRAPS, "MatMul, Transpose, as many rows as columns", "d = MatMul(x, w_4x4) c = Transpose(d) y = BN(c)", 3, 1, signature="float[4,4] x) => (float[4,4] y"),
    Case(TRAPS, "MatMul, Reshape, as many rows as columns", "d = MatMul(x, w_4x4) c = Reshape(d, s) y = BN(c)", 3, 1, signature="float[8,4] x) => (float[2,4,4] y", constants="int64[3] s = {2, 4, 4}"),
    Case(TRAPS, "MatMul, Reshape, another axis", "d = MatMul(x, w_4x4) c = Reshape(d, s) y = BN(c)", 3, 1, signature="float[N,4,4] x) => (float[N,4,2,2] y", constants="int64[4] s = {0, 4, 2, 2}"),
    Case(TRAPS, "columns as many as channels", "c = Conv(x, w_4x4x3x3) y = Mul(c, k_4)", 2, signature="float[N,4,8,6] x) => (float[N,4,6,4] y"),
    Case(TRAPS, "columns as many as channels, in full rank", "c = Conv(x, w_4x4x3x3) y = Mul(c, k_1x1x1x4)", 2, signature="float[N,4,8,6] x) => (float[N,4,6,4] y"),
    Case(TRAPS, "samples as many as channels", "c = Conv(x, w_4x4x3x3) y = Add(c, k_4x1x1x1)", 2, signature="float[4,4,8,8] x) => (float[4,4,6,6] y"),
    Case(TRAPS, "constant that raises the rank", "c = Conv(x, w_4x4x3x3) y = Mul(c, k_1x1x4x1x1)", 2, signature="float[N,4,8,8] x) => (float[1,N,4,6,6] y"),
    Case(TRAPS, "shift before a padded Conv", "d = BN(x) y = Conv<pads=[1,1,1,1]>(d, w_4x4x3x3)", 2, 1),
    Case(TRAPS, "negative scale behind MaxPool", "d = Conv(x, w_4x4x3x3) c = MaxPool<kernel_shape=[3,3]>(d) y = BN(c)", 3, 1, signature="float[N,4,8,8] x) => (float[N,4,4,4] y"),
    Case(TRAPS, "shift behind Relu", f"d = Conv(x, w_4x4x3x3) c = Relu(d) y = {_POSITIVE}", 3, 1, signature=VALID),
    Case(TRAPS, "padding that counts", "d = Conv(x, w_4x4x1x1) c = AveragePool<kernel_shape=[3,3],pads=[1,1,1,1],count_include_pad=1>(d) y = BN(c)", 3, 1),
    Case(TRAPS, "Conv that others read", "c = Conv(x, w_4x4x3x3) y = BN(c) z = Tanh(c)", 3, 1, signature=VALID + ", float[N,4,6,6] z"),
    Case(TRAPS, "Conv that is an output", "c = Conv(x, w_4x4x3x3) y = BN(c)", 2, 1, signature=VALID + ", float[N,4,6,6] c"),
    Case(TRAPS, "scale that a caller feeds", "c = Conv(x, w_4x4x3x3) y = BN(c)", 2, 1, signature=VALID.replace("x)", "x, float[4] g_4)"), override="g_4"),
    Case(TRAPS, "weight that a caller feeds", "c = Conv(x, w_4x4x3x3) y = BN(c)", 2, 1, signature=VALID.replace("x)", "x, float[4,4,3,3] w_4x4x3x3)"), override="w_4x4x3x3"),
    Case(TRAPS, "1×1 with a bias → padded k×k", "a = Conv(x, w_4x4x1x1, b_4) y = Conv<pads=[1,1,1,1]>(a, w_4x4x3x3)", 2),
    Case(NAMES, "shared weight", "c = Conv(x, w_4x4x3x3) y = BN(c) z = Conv(u, w_4x4x3x3)", 2, signature=TWO.replace("8,8] y", "6,6] y") + ", float[N,4,6,6] z"),
    Case(NAMES, "shared weight and statistics", "c = Conv(x, w_4x4x3x3) y = BN(c) d = Conv(u, w_4x4x3x3) z = BN(d)", 2, signature=TWO.replace("8,8] y", "6,6] y") + ", float[N,4,6,6] z"),
    Case(NAMES, "Conv and ConvTranspose on one weight", "c = Conv(x, w_4x4x3x3) y = BN(c) d = ConvTranspose(u, w_4x4x3x3) z = BN(d)", 2, signature=TWO.replace("8,8] y", "6,6] y") + ", float[N,4,10,10] z"),
    Case(NAMES, "weight that is an output", "c = Conv(x, w_4x4x3x3) y = BN(c)", 1, signature=VALID + ", float[4,4,3,3] w_4x4x3x3"),
    Case(NAMES, "bias name that is taken", "c = Conv(x, w_4x4x3x3) y = BN(c) z = Add(y, w_4x4x3x3_bias)", 2, signature=VALID + ", float[N,4,6,6] z", constants="float[6] w_4x4x3x3_bias = {1, 2, 3, 4, 5, 6}"),
)  # fmt: skip
