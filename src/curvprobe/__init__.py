"""How much the loss landscape around a trained solution still moves when data is added, and in which directions."""

from curvprobe import losses
from curvprobe.analysis import analyze
from curvprobe.checkpoint import Checkpoint
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
from curvprobe.result import Analysis
from curvprobe.risk import EmpiricalRisk
from curvprobe.subspace import Subspace, gradient_subspace, random_subspace, top_eigenspace
from curvprobe.tasks import Task
from curvprobe.validity import QuadraticValidity, quadratic_validity
from curvprobe.version import __version__

__all__ = [
    "Analysis",
    "Checkpoint",
    "ConvergenceWarning",
    "CurvatureMatrix",
    "DecayCurve",
    "Eigenpairs",
    "EmpiricalRisk",
    "Estimate",
    "IsotropicProbe",
    "LaplaceProbe",
    "NormalizedProbe",
    "PointProbe",
    "Probe",
    "ProjectedSample",
    "QuadraticIncrement",
    "QuadraticValidity",
    "Subspace",
    "SubspaceProbe",
    "Task",
    "__version__",
    "analyze",
    "controlled_monte_carlo",
    "decay_curve",
    "delta1",
    "delta2",
    "delta2_subspace",
    "direct_monte_carlo",
    "gaussian_moment",
    "ggn",
    "gradient_subspace",
    "hessian",
    "increment",
    "lanczos",
    "losses",
    "mean_projection",
    "prefix_increments",
    "project",
    "quadratic_monte_carlo",
    "quadratic_validity",
    "random_subspace",
    "top_eigenspace",
]
