"""Measurements of a model or a method: the figures of the papers, and whether results can be trusted."""

from pyengm.analysis.accuracy_curve import AccuracyCurve, accuracy_curve
from pyengm.analysis.cross_robustness import CrossRobustness, cross_robustness
from pyengm.analysis.fosc_bins import FOSCBins, fosc_bins
from pyengm.analysis.fosc_distribution import FOSCDistribution, fosc_distribution
from pyengm.analysis.fosc_trajectory import FOSCTrajectory, fosc_trajectory
from pyengm.analysis.gradient_statistics import GradientStatistics, gradient_statistics
from pyengm.analysis.hessian_top import HessianTop, hessian_top
from pyengm.analysis.input_plane import InputPlane, input_plane
from pyengm.analysis.instances import Instances, instances
from pyengm.analysis.loss_gap import LossGap, loss_gap
from pyengm.analysis.norm_correlation import NormCorrelation, norm_correlation
from pyengm.analysis.norm_errors import NormErrors, norm_errors
from pyengm.analysis.parts import Parts, SavedParts
from pyengm.analysis.smoothness import Smoothness, smoothness
from pyengm.analysis.toy_surface import ToySurface, toy_surface
from pyengm.analysis.weight_errors import WeightErrors, weight_errors
from pyengm.analysis.weight_plane import WeightPlane, weight_plane

__all__ = [
    "AccuracyCurve",
    "CrossRobustness",
    "FOSCBins",
    "FOSCDistribution",
    "FOSCTrajectory",
    "GradientStatistics",
    "HessianTop",
    "InputPlane",
    "Instances",
    "LossGap",
    "NormCorrelation",
    "NormErrors",
    "Parts",
    "SavedParts",
    "Smoothness",
    "ToySurface",
    "WeightErrors",
    "WeightPlane",
    "accuracy_curve",
    "cross_robustness",
    "fosc_bins",
    "fosc_distribution",
    "fosc_trajectory",
    "gradient_statistics",
    "hessian_top",
    "input_plane",
    "instances",
    "loss_gap",
    "norm_correlation",
    "norm_errors",
    "smoothness",
    "toy_surface",
    "weight_errors",
    "weight_plane",
]
