"""How much the loss landscape around a trained solution still moves when data is added, and in which directions."""

from curvprobe import losses
from curvprobe.analysis import analyze
from curvprobe.checkpoint import Checkpoint
from curvprobe.concentration import ConcentrationCurve, concentration_curve, default_subspaces
from curvprobe.criteria import DecayCurve, decay_curve, delta1, delta2, delta2_subspace
from curvprobe.curvature import CurvatureMatrix, ggn, hessian
from curvprobe.deformation import deformation_subspace
from curvprobe.eigensolver import ConvergenceWarning, Eigenpairs, lanczos
from curvprobe.estimators import Estimate, gaussian_moment, quadratic_monte_carlo
from curvprobe.expectation import ExpectedCriterion, expected_criterion
from curvprobe.full_space import FullSpaceParts, full_space_moment, full_space_parts
from curvprobe.increment import QuadraticIncrement, increment, prefix_increments
from curvprobe.laws import LawTable, compare_laws, default_laws
from curvprobe.monte_carlo import closed_form, controlled_monte_carlo, direct_monte_carlo
from curvprobe.probes import IsotropicProbe, LaplaceProbe, NormalizedProbe, PointProbe, Probe, SubspaceProbe
from curvprobe.projection import ProjectedSample, mean_projection, project
from curvprobe.ranking import Ranking, gradient_norms, rank_candidates
from curvprobe.result import Analysis
from curvprobe.risk import EmpiricalRisk
from curvprobe.sample_size import RequiredSampleSize, required_sample_size
from curvprobe.stationarity import Stationarity, stationarity
from curvprobe.subspace import Subspace, gradient_subspace, random_subspace, top_eigenspace
from curvprobe.tasks import Task
from curvprobe.theory import (
    Extremality,
    RateBound,
    SpectralClosedForm,
    TheoryChecks,
    extremality,
    rate_bound,
    spectral_closed_form,
    theory_checks,
)
from curvprobe.traces import TraceMoments, trace_moments
from curvprobe.trajectory import PowerLaw, Trajectory, trajectory
from curvprobe.validity import QuadraticValidity, quadratic_validity
from curvprobe.version import __version__

__all__ = [
    "Analysis",
    "Checkpoint",
    "ConcentrationCurve",
    "ConvergenceWarning",
    "CurvatureMatrix",
    "DecayCurve",
    "Eigenpairs",
    "EmpiricalRisk",
    "Estimate",
    "ExpectedCriterion",
    "Extremality",
    "FullSpaceParts",
    "IsotropicProbe",
    "LaplaceProbe",
    "LawTable",
    "NormalizedProbe",
    "PointProbe",
    "PowerLaw",
    "Probe",
    "ProjectedSample",
    "QuadraticIncrement",
    "QuadraticValidity",
    "Ranking",
    "RateBound",
    "RequiredSampleSize",
    "SpectralClosedForm",
    "Stationarity",
    "Subspace",
    "SubspaceProbe",
    "Task",
    "TheoryChecks",
    "TraceMoments",
    "Trajectory",
    "__version__",
    "analyze",
    "closed_form",
    "compare_laws",
    "concentration_curve",
    "controlled_monte_carlo",
    "decay_curve",
    "default_laws",
    "default_subspaces",
    "deformation_subspace",
    "delta1",
    "delta2",
    "delta2_subspace",
    "direct_monte_carlo",
    "expected_criterion",
    "extremality",
    "full_space_moment",
    "full_space_parts",
    "gaussian_moment",
    "ggn",
    "gradient_norms",
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
    "rank_candidates",
    "rate_bound",
    "required_sample_size",
    "spectral_closed_form",
    "stationarity",
    "theory_checks",
    "top_eigenspace",
    "trace_moments",
    "trajectory",
]
