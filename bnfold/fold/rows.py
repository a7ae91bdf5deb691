"""A product whose rows are laid out in one matrix behind it gets them so before it, where a shift waits behind both.

A MatMul has no bias, a Gemm has; and a Gemm takes matrices only. With rows ``X`` of shape ``(…, K)`` and a matrix
``W`` of shape ``(K, N)``::

    Reshape(X · W, (M, N)) + b  =  Reshape(X, (M, K)) · W + b

which is how a batch norm over the tokens of a transformer is exported: it wants all tokens in one axis.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from bnfold.fold.absorb import takes_bias, would_be_gemm
from bnfold.fold.sites import Selection, Site
from bnfold.graph import ModelGraph, in_default_domain, input_of


def lay_out_before(site: Site, graph: ModelGraph, selected: Selection) -> bool:
    """Exchange a MatMul and the Reshape between it and a shift, in place; whether they are such a pair."""
    reshape = site.source.producer()
    product = _product_before(reshape, graph) if site.affine.has_shift and reshape is not None else None
    if reshape is None or product is None or not (selected(reshape) and selected(product)):
        return False
    between, result = product.outputs[0], reshape.outputs[0]
    source, weight = input_of(product, 0), input_of(product, 1)
    inner = (graph.shapes.shape(weight) or (None,))[0]
    rows = graph.shapes.inferred(result)
    assert isinstance(inner, int)
    assert rows is not None
    sizes = graph.add_constant(np.array([-1, inner], np.int64), f"{between.name}_rows_shape")
    (flat,) = graph.add_before(product, "Reshape", [source, sizes], {}, {f"{between.name}_rows": source})
    flat.type, flat.shape = between.type, None
    graph.shapes.set(flat, (rows[0], inner), graph.shapes.dtype(source))
    graph.use(product, 0, flat)
    between.type, between.shape = result.type, result.shape
    graph.shapes.copy(result, between)
    told = input_of(reshape, 1)
    graph.bypass([reshape], between, result, rename=True)
    graph.discard_sizes(told, selected)
    return True


def _product_before(reshape: ir.Node, graph: ModelGraph) -> ir.Node | None:
    """The MatMul by one matrix of which a Reshape, alone, lays out the rows."""
    if reshape.op_type != "Reshape" or not in_default_domain(reshape) or len(reshape.inputs) < 2:
        return None
    between = input_of(reshape, 0)
    product = between.producer()
    if product is None or product.op_type != "MatMul" or not in_default_domain(product):
        return None
    if len(between.uses()) != 1 or between.is_graph_output() or product.graph is not reshape.graph:
        return None
    weight, rows = graph.shapes.inferred(input_of(product, 1)), graph.shapes.inferred(reshape.outputs[0])
    if weight is None or rows is None or len(weight) != 2 or len(rows) != 2:
        return None
    inner, outer = weight
    whole = isinstance(inner, int) and isinstance(outer, int) and inner > 0 and outer > 0 and rows[1] == outer
    is_constant = graph.constants.floats(input_of(product, 1)) is not None
    gains = would_be_gemm(product, graph) and not takes_bias(product, graph)
    return product if whole and is_constant and gains else None
