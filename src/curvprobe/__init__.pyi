"""What ``import curvprobe as cp`` offers, and where each name lives; loaded at its first use."""

from . import losses as losses
from . import plots as plots
from .analysis.analyze import analyze as analyze
from .analysis.answer import Answer as Answer
from .analysis.answer import Mark as Mark
from .analysis.comparison import ComparedRun as ComparedRun
from .analysis.comparison import Comparison as Comparison
from .analysis.comparison import compare as compare
from .analysis.concentration import ConcentrationCurve as ConcentrationCurve
from .analysis.concentration import concentration_curve as concentration_curve
from .analysis.doctor import examine as examine
from .analysis.examination import Examination as Examination
from .analysis.examination import Finding as Finding
from .analysis.law_table import LawTable as LawTable
from .analysis.law_table import compare_laws as compare_laws
from .analysis.monitor import Monitor as Monitor
from .analysis.plan import Plan as Plan
from .analysis.plan import PlannedStage as PlannedStage
from .analysis.plan import plan as plan
from .analysis.record import load as load
from .analysis.result import Analysis as Analysis
from .analysis.stationarity import stationarity as stationarity
from .analysis.sweep import sweep as sweep
from .analysis.trajectory import Trajectory as Trajectory
from .analysis.trajectory import trajectory as trajectory
from .criteria.decay import DecayCurve as DecayCurve
from .criteria.decay import decay_curve as decay_curve
from .criteria.distribution import IncrementDistribution as IncrementDistribution
from .criteria.distribution import increment_distribution as increment_distribution
from .criteria.estimators import (
    Estimate as Estimate,
)
from .criteria.estimators import (
    gaussian_moment as gaussian_moment,
)
from .criteria.estimators import (
    quadratic_monte_carlo as quadratic_monte_carlo,
)
from .criteria.expectation import expected_criterion as expected_criterion
from .criteria.expected import ExpectedCriterion as ExpectedCriterion
from .criteria.increment import (
    QuadraticIncrement as QuadraticIncrement,
)
from .criteria.increment import (
    increment as increment,
)
from .criteria.increment import (
    prefix_increments as prefix_increments,
)
from .criteria.ranking import Ranking as Ranking
from .criteria.ranking import rank_candidates as rank_candidates
from .criteria.sample import ProjectedSample as ProjectedSample
from .criteria.sample_size import RequiredSampleSize as RequiredSampleSize
from .criteria.sample_size import required_sample_size as required_sample_size
from .criteria.stationarity import Stationarity as Stationarity
from .criteria.theory import (
    Extremality as Extremality,
)
from .criteria.theory import (
    RateBound as RateBound,
)
from .criteria.theory import (
    SpectralClosedForm as SpectralClosedForm,
)
from .criteria.theory import (
    TheoryChecks as TheoryChecks,
)
from .criteria.theory import (
    extremality as extremality,
)
from .criteria.theory import (
    rate_bound as rate_bound,
)
from .criteria.theory import (
    spectral_closed_form as spectral_closed_form,
)
from .criteria.theory import (
    theory_checks as theory_checks,
)
from .criteria.verdicts import QuadraticValidity as QuadraticValidity
from .criteria.worst_case import WorstCase as WorstCase
from .criteria.worst_case import worst_case as worst_case
from .curvature.matrix import CurvatureMatrix as CurvatureMatrix
from .curvature.matrix import ggn as ggn
from .curvature.matrix import hessian as hessian
from .eigensolver.checkpoint import Checkpoint as Checkpoint
from .eigensolver.doubt import ConvergenceWarning as ConvergenceWarning
from .eigensolver.lanczos import Eigenpairs as Eigenpairs
from .eigensolver.lanczos import lanczos as lanczos
from .errors import (
    ArgumentError as ArgumentError,
)
from .errors import (
    CannotProbeError as CannotProbeError,
)
from .errors import (
    CurvprobeError as CurvprobeError,
)
from .errors import (
    MissingExtraError as MissingExtraError,
)
from .errors import (
    NotFiniteError as NotFiniteError,
)
from .errors import (
    RankError as RankError,
)
from .errors import UserCodeError as UserCodeError
from .errors import WriteError as WriteError
from .forecasting.forecast import forecast as forecast
from .forecasting.result import Forecast as Forecast
from .numerics.power_law import PowerLaw as PowerLaw
from .numerics.traces import TraceMoments as TraceMoments
from .numerics.traces import trace_moments as trace_moments
from .probing.deltas import delta1 as delta1
from .probing.deltas import delta2 as delta2
from .probing.deltas import delta2_subspace as delta2_subspace
from .probing.full_space import (
    FullSpaceParts as FullSpaceParts,
)
from .probing.full_space import (
    full_space_moment as full_space_moment,
)
from .probing.full_space import (
    full_space_parts as full_space_parts,
)
from .probing.laws import (
    IsotropicProbe as IsotropicProbe,
)
from .probing.laws import (
    LaplaceProbe as LaplaceProbe,
)
from .probing.laws import (
    NormalizedProbe as NormalizedProbe,
)
from .probing.laws import (
    PointProbe as PointProbe,
)
from .probing.laws import (
    Probe as Probe,
)
from .probing.laws import (
    SubspaceProbe as SubspaceProbe,
)
from .probing.monte_carlo import (
    closed_form as closed_form,
)
from .probing.monte_carlo import (
    controlled_monte_carlo as controlled_monte_carlo,
)
from .probing.monte_carlo import (
    direct_monte_carlo as direct_monte_carlo,
)
from .probing.named_laws import default_laws as default_laws
from .probing.plane import Plane as Plane
from .probing.plane import plane as plane
from .probing.validity import quadratic_validity as quadratic_validity
from .risk.drawing import draw_examples as draw_examples
from .risk.empirical import EmpiricalRisk as EmpiricalRisk
from .risk.heads import before_head as before_head
from .subspace.deformation import deformation_subspace as deformation_subspace
from .subspace.directions import checkpoint_directions as checkpoint_directions
from .subspace.directions import filter_directions as filter_directions
from .subspace.eigenspace import top_eigenspace as top_eigenspace
from .subspace.gradients import gradient_norms as gradient_norms
from .subspace.gradients import gradient_subspace as gradient_subspace
from .subspace.named import default_subspaces as default_subspaces
from .subspace.projection import mean_projection as mean_projection
from .subspace.projection import project as project
from .subspace.spaces import Eigenspace as Eigenspace
from .subspace.spaces import Subspace as Subspace
from .subspace.spaces import random_subspace as random_subspace
from .tasks import Task as Task
from .version import __version__ as __version__
