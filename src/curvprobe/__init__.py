"""How much the loss landscape around a trained solution still moves when data is added, and in which directions."""

from curvprobe import losses
from curvprobe.criteria import DecayCurve, decay_curve, delta1, delta2, delta2_subspace
from curvprobe.curvature import CurvatureMatrix, ggn, hessian
from curvprobe.eigensolver import ConvergenceWarning, Eigenpairs, lanczos
from curvprobe.estimators import (
    Estimate,
    controlled_monte_carlo,
    direct_monte_carlo,
    gaussian_moment,
    quadratic_monte_carlo,
)
from curvprobe.increment import QuadraticIncrement, increment, prefix_increments
from curvprobe.probes import IsotropicProbe, LaplaceProbe, NormalizedProbe, PointProbe, Probe, SubspaceProbe
from curvprobe.projection import ProjectedSample, mean_projection, project
from curvprobe.risk import EmpiricalRisk
from curvprobe.subspace import Subspace, gradient_subspace, random_subspace, top_eigenspace
from curvprobe.validity import QuadraticValidity, quadratic_validity

__version__ = "0.1.0"
