"""What the operators of ONNX and of com.microsoft do with tensors, as far as it matters for weights. Products: see `products`.

An operator that is in none of these tables does something that is not known here: tables that reach it are unaccounted for.
"""

from __future__ import annotations

from maskpro_deploy.onnx_graphs.nodes import MICROSOFT, STANDARD
from maskpro_deploy.validation.source import Rule

# operators of other domains are somebody's own: what they compute, and with which weights, is not known
KNOWN_DOMAINS = frozenset((*STANDARD, MICROSOFT, "ai.onnx.ml", "com.microsoft.nchwc", "com.ms.internal.nhwc"))


def names_in(text: str) -> frozenset[str]:
    """The names of operators in a text."""
    return frozenset(text.split())


# one value in, one of the same elements out
UNARY = names_in(
    """
    Abs Acos Acosh Asin Asinh Atan Atanh Cast CastLike Ceil Celu Clip Cos Cosh DequantizeLinear Dropout DynamicQuantizeLinear
    Elu Erf Exp FastGelu Floor Gelu HardSigmoid HardSwish Identity LeakyRelu Log Mish Neg QLinearLeakyRelu QLinearSigmoid
    QuantizeLinear QuickGelu Reciprocal Relu Round Selu Shrink Sigmoid Sign Silu Sin Sinh Softplus Softsign Sqrt Swish Tan Tanh
    ThresholdedRelu
    """
)
# several values in, joined without a product of two of them
ADDING = names_in(
    """
    Add BiasAdd BiasGelu BiasSplitGelu BitwiseAnd BitwiseOr BitwiseXor Concat Max Mean Min Mod QLinearAdd QLinearConcat
    ScatterElements ScatterND SequenceConstruct SequenceInsert Sub Sum TensorScatter Where
    """
)
MULTIPLYING = frozenset({"Div", "Mul", "Pow", "PRelu", "QLinearMul"})
LOGIC = names_in("And Equal Greater GreaterOrEqual IsInf IsNaN Less LessOrEqual NonZero Not Or Xor")
# elements of the first input in another shape or order, or some of them; the other inputs say which
MOVING = names_in(
    """
    Compress ConcatFromSequence DepthToSpace Expand Flatten Gather GatherElements GatherND Pad Reshape ReverseSequence
    SequenceAt Slice SpaceToDepth Split SplitToSequence Squeeze Tile TopK Transpose Trilu Unsqueeze
    """
)
# sums, means and the like along an axis
REDUCING = names_in(
    """
    ArgMax ArgMin AveragePool CumSum GlobalAveragePool GlobalMaxPool MaxPool QLinearAveragePool QLinearGlobalAveragePool
    QLinearReduceMean ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum
    ReduceSumSquare
    """
)
# operator -> how many of its inputs are activations; the others are their scales and shifts
NORMALISING = dict.fromkeys(
    names_in(
        """
        BatchNormalization BiasSoftmax GroupNorm GroupNormalization Hardmax InstanceNormalization LRN LayerNormalization
        LogSoftmax LpNormalization MeanVarianceNormalization QLinearSoftmax RMSNormalization SimplifiedLayerNormalization Softmax
        """
    ),
    1,
) | dict.fromkeys(("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"), 2)
# after these, a table that was added to activations can no longer be seen in them
SETTLING = names_in(
    """
    BiasSoftmax Hardmax LayerNormalization LogSoftmax RMSNormalization SimplifiedLayerNormalization SkipLayerNormalization
    SkipSimplifiedLayerNormalization Softmax
    """
)
SUMMING = frozenset({"AveragePool", "CumSum", "GlobalAveragePool", "ReduceLogSumExp", "ReduceSum"})
SHAPES = frozenset({"Shape", "Size"})
RANDOM = frozenset({"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"})
# the inputs of these that hold data; the others are indices
_DATA = {"ScatterElements": (0, 2), "ScatterND": (0, 2), "TensorScatter": (0, 1), "Where": (1, 2)}
# an operator's engine, compiled elsewhere, holds weights of its own
SEALED = frozenset({"EPContext"})

# (domain, operator) -> what its inputs serve as; those that are not named are activations
PARAMETERS: dict[tuple[str, str], dict[int, Rule]] = {
    ("", "RotaryEmbedding"): {1: Rule.POSITIONS, 2: Rule.POSITIONS, 3: Rule.INDEX},
    (MICROSOFT, "RotaryEmbedding"): {1: Rule.INDEX, 2: Rule.POSITIONS, 3: Rule.POSITIONS},
    ("", "Attention"): {3: Rule.ELEMENTWISE},
    (MICROSOFT, "MultiHeadAttention"): {3: Rule.ELEMENTWISE, 4: Rule.ELEMENTWISE, 5: Rule.ELEMENTWISE},
    (MICROSOFT, "GroupQueryAttention"): {
        **dict.fromkeys((5, 6, 9), Rule.INDEX),
        **dict.fromkeys((7, 8), Rule.POSITIONS),
        **dict.fromkeys((10, 11), Rule.ELEMENTWISE),
    },
    (MICROSOFT, "SparseAttention"): {**dict.fromkeys((5, 6, 7, 8), Rule.INDEX), **dict.fromkeys((9, 10), Rule.POSITIONS)},
    (MICROSOFT, "EmbedLayerNormalization"): {
        **dict.fromkeys((2, 3, 4), Rule.TOKEN_TABLE),
        **dict.fromkeys((5, 6), Rule.ELEMENTWISE),
        **dict.fromkeys((7, 8), Rule.INDEX),
    },
    (MICROSOFT, "QEmbedLayerNormalization"): {
        **dict.fromkeys((2, 3, 4), Rule.TOKEN_TABLE),
        **dict.fromkeys(range(5, 18), Rule.QUANTISATION),
    },
    (MICROSOFT, "RelativePositionBias"): {0: Rule.ELEMENTWISE, 1: Rule.INDEX, 2: Rule.INDEX},
}


def data_inputs(op_type: str, count: int) -> range | tuple[int, ...]:
    """Numbers of the inputs whose elements go into the result."""
    return _DATA.get(op_type, range(count))
