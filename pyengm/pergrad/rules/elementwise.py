"""Layout rules of elementwise operations: every input has the layout of the output, up to broadcasting."""

from collections.abc import Mapping

from pyengm.pergrad.layout import NOBODY, Layout, Shape, UnprovenError, carry
from pyengm.pergrad.rules.registry import Layouts, NodeView, layout_rule


def aligned_axes(source: Shape, target: Shape) -> dict[int, int]:
    """Axes that correspond under broadcasting, which aligns shapes at the right."""
    shift = len(target) - len(source)
    return {axis: axis + shift for axis in range(len(source)) if axis + shift >= 0}


@layout_rule("""
    Abs Acos Acosh AcoshBackward1 Add AddBackward1 Addcdiv Addcmul Alias Angle Asin Asinh AsinhBackward1 Atan Atan2
    Atanh AtanhBackward1 Bernoulli BernoulliBackward1 BernoulliBackward2 BinaryCrossEntropy
    BinaryCrossEntropyWithLogits Cauchy Ceil Celu CeluBackward1 Clamp ClampBackward1 ClampMax ClampMaxBackward1
    ClampMin ClampMinBackward1 Clone Complex Conj ConjPhysical ConjPhysicalBackward1 Contiguous Copy CopyBackwards
    torch::autograd::CopyBackwards Copysign CopysignBackward1 Cos Cosh Deg2Rad Digamma Div DivBackward1 DivBackward2
    DivBackward3 Elu EluBackward1 Erf Erfc Erfinv Exp Exp2 Expand Expm1 Exponential Fill FillBackward1 FillBackward2
    FillBackward3 Floor Fmax Fmin Fmod FmodBackward1 Frac FusedDropout Gelu Geometric Hardshrink Hardsigmoid
    Hardswish Hardtanh HuberLoss Hypot I0 Igamma Igammac Imag LazyClone Ldexp LeakyRelu LeakyReluBackward1 Lerp
    LerpBackward1 Lgamma Lift LiftFresh Log Log10 Log1P Log2 LogNormal LogSigmoid Logaddexp Logaddexp2 Logit
    MaskedFill MaskedFillBackward1 Maximum Minimum Mish MseLoss Mul MulBackward1 NanToNum NativeDropout Neg NegView
    Normal NormalBackward1 NormalBackward2 NormalBackward3 Polar Polygamma PolygammaBackward1 Pow PowBackward1
    PowBackward2 PreluKernel Rad2Deg Real Reciprocal Relu Remainder RemainderBackward1 Round RoundBackward1
    RreluWithNoise RreluWithNoiseBackward1 RreluWithNoiseFunctional Rsqrt Rsub RsubBackward1 Sgn Sigmoid Sign Silu
    Sin Sinc Sinh SmoothL1Loss SoftMarginLoss Softplus Softshrink SpecialEntr SpecialErfcx SpecialI0E SpecialI1
    SpecialI1E SpecialLogNdtr SpecialNdtri SpecialXlog1Py SpecialXlog1PyBackward1 SpecialXlog1PyBackward2 Sqrt Sub
    SubBackward1 Tan Tanh Threshold ThresholdBackward1 ToCopy Tril Triu Trunc Uniform Where Xlogy XlogyBackward1
    XlogyBackward2 Zero
""")
def elementwise(node: NodeView, layouts: Mapping[int, Layout]) -> Layouts:
    layout, shape = layouts[0], node.outputs[0]
    return [None if to is None else carry(layout, shape, to, aligned_axes(shape, to)) for to in node.inputs]


@layout_rule("_DDPSinkBackward")
def ddp_sink(node: NodeView, layouts: Mapping[int, Layout]) -> Layouts:
    """DistributedDataParallel passes the outputs of its model through it, each as it is."""
    if len(node.inputs) != len(node.outputs):
        raise UnprovenError("some outputs of the model are no tensors")
    return [None if to is None else layouts.get(slot, NOBODY) for slot, to in enumerate(node.inputs)]
