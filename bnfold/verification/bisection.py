"""Which of ONNX Runtime's own optimizations changes a result: by bisection over their names. Pure but for the names."""

from __future__ import annotations

from collections.abc import Callable, Sequence

#: The graph transformers and rewrite rules of ONNX Runtime that its ``disabled_optimizers`` leaves out by name.
#: ONNX Runtime 1.31 has no call that lists them; those of its CPU build are all here. A name that another version
#: does not know does no harm.
OPTIMIZERS: tuple[str, ...] = (
    # rewrite rules of the basic level
    *("CastChainElimination", "CastElimination", "ClipQuantRewrite", "ConvAddFusion", "ConvBNFusion", "ConvMulFusion"),
    *("DivMulFusion", "EliminateDropout", "EliminateIdentity", "EliminateSlice", "ExpandElimination", "FuseReluClip"),
    *("GemmSumFusion", "GemmTransposeFusion", "LabelEncoderFusion", "MatMul_BatchNormalization_Fusion"),
    *("NoopElimination", "NotWhereFusion", "Pad_Fusion", "PreShapeNodeElimination", "ReluQuantRewrite"),
    *("UnsqueezeElimination",),
    # graph transformers of the basic level
    *("CommonSubexpressionElimination", "ConstantFolding", "ConstantFoldingDQ", "ConstantSharing"),
    *("DoubleQDQPairsRemover", "EnsureUniqueDQForNodeUnit", "FreeDimensionOverrideTransformer", "GeluFusionL1"),
    *("LayerNormFusionL1", "MatMulAddFusion", "QDQPropagationTransformer", "ReshapeFusion"),
    *("SliceConcatToSpaceToDepthFusion", "TransposeOptimizer", "WeightBiasQuantization", "WhereDummyDq"),
    # of the extended level
    *("AttentionFusion", "BiasDropoutFusion", "BiasGeluFusion", "BiasSkipLayerNormFusion", "BiasSoftmaxFusion"),
    *("ConvActivationFusion", "ConvAddActivationFusion", "DynamicQuantizeMatMulFusion", "EmbedLayerNormFusion"),
    *("FastGeluFusion", "GatherSliceToSplitFusion", "GatherToSliceFusion", "GeluFusionL2", "GemmActivationFusion"),
    *("GroupQueryAttentionFusion", "GroupQueryAttentionPreNormFusion", "LayerNormFusionL2", "MatMulActivationFusion"),
    *("MatMulIntegerToFloatFusion", "MatMulNBitsFusion", "MatMulScaleFusion", "MatmulTransposeFusion"),
    *("QDQFinalCleanupTransformer", "QDQS8ToU8Transformer", "QDQSelectorActionTransformer", "QuickGeluFusion"),
    *("SimplifiedLayerNormFusion", "SkipLayerNormFusion", "TransposeOptimizer_CPUExecutionProvider"),
    # of the layout level, and of all
    *("Avx2WeightS8ToU8Transformer", "FuseFp16InitializerToFp32NodeTransformer", "NchwcTransformer"),
    *("NhwcTransformer", "RemoveDuplicateCastTransformer"),
)


def smallest_cure(suspects: Sequence[str], heals: Callable[[Sequence[str]], bool]) -> list[str] | None:
    """A set of suspects without which all is well, of which none can be spared; None where that takes more than them.

    About ``log₂(len(suspects))`` trials for each one found, and two more.

    Args:
        suspects: what may be left out.
        heals: whether all is well without these. Leaving out more never hurts, it is assumed.
    """
    if not heals(suspects):
        return None
    needed: list[str] = []
    rest = list(suspects)
    while not heals(needed):
        # The shortest beginning of the rest that heals, with what is needed: its last one is needed too.
        fails, works = 0, len(rest)
        while works - fails > 1:
            middle = (fails + works) // 2
            if heals([*needed, *rest[:middle]]):
                works = middle
            else:
                fails = middle
        needed.append(rest[works - 1])
        rest = rest[: works - 1]
    return needed


def first_culprit(count: int, fails: Callable[[int], bool]) -> int | None:
    """The smallest ``n`` in ``1 … count`` that fails, given that all after it do too; None where none does."""
    if not fails(count):
        return None
    good, bad = 0, count
    while bad - good > 1:
        middle = (good + bad) // 2
        if fails(middle):
            bad = middle
        else:
            good = middle
    return bad
