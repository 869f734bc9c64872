"""Verdicts on the quadratic model over a grid, at the grid's edges and between."""

import math
from dataclasses import replace

import pytest
import torch

import curvprobe as cp
from curvprobe.criteria.verdicts import verdict_of


def judged(*verdicts: str, errors: tuple[float, ...] | None = None) -> cp.QuadraticValidity:
    size = {"valid": 0.01, "marginal": 0.1, "invalid": 0.9}
    error = torch.tensor(errors or [size[v] for v in verdicts], dtype=torch.float64)
    sigmas = torch.tensor([10.0 ** (i - 4) for i in range(len(verdicts))], dtype=torch.float64)
    draws = torch.full((len(verdicts),), 8)
    return cp.QuadraticValidity(sigmas, error, None, 0.05, verdicts, draws, 0.1 * error, sigmas, 1.0)


def test_a_verdict_counts_for_what_is_not_above_its_sigma():
    found = judged("valid", "marginal", "invalid")
    at = {
        1e-9: "valid",
        1e-4: "valid",
        1e-4 * (1 + 1e-10): "valid",
        1.01e-4: "marginal",
        1e-3: "marginal",
        2e-3: "invalid",
    }
    assert {sigma: found.verdict(sigma) for sigma in at} == at
    assert found.verdict(1e-2) == "invalid"
    assert judged("valid", "valid").verdict(1.01e-3) == "invalid"


def test_errors_are_those_of_the_nearest_sigma():
    found = judged("valid", "marginal", "invalid")
    assert [found.error_at(s) for s in (1e-5, 1e-4, 1.1e-3, 9e-3, 1.0)] == [0.01, 0.01, 0.1, 0.9, 0.9]
    assert found.stderr_at(1.1e-3) == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("verdicts", "largest", "floor"),
    [
        (("valid", "valid", "marginal", "invalid"), 1e-3, None),
        (("invalid", "valid", "valid", "invalid"), 1e-2, 1e-3),
        (("valid", "invalid", "valid", "invalid"), 1e-4, None),
        (("valid", "valid", "valid", "valid"), 1e-1, None),
        (("marginal", "invalid", "invalid", "invalid"), None, None),
        (("invalid",), None, None),
    ],
)
def test_the_validated_sigmas(verdicts, largest, floor):
    found = judged(*verdicts)
    assert found.validated_sigma == (None if largest is None else pytest.approx(largest))
    assert found.precision_floor == (None if floor is None else pytest.approx(floor))


def test_the_run_starts_where_the_error_is_least():
    found = judged("valid", "invalid", "valid", "valid", errors=(0.02, 0.9, 0.001, 0.01))
    assert (found.validated_sigma, found.precision_floor) == (pytest.approx(1e-1), pytest.approx(1e-2))
    assert judged("invalid", "valid", errors=(math.nan, 0.01)).validated_sigma == pytest.approx(1e-3)
    nowhere = judged("marginal", "marginal", errors=(0.1, 0.08))
    assert (nowhere.validated_sigma, nowhere.precision_floor) == (None, None)


def test_where_the_rounding_of_losses_hides_the_change():
    """At a loss of 1 half of bfloat16's unit is 2^-9, and a change of 20 times that shows at a threshold of 1/20."""
    found = judged("valid", "valid", "valid", "valid")
    unit = torch.finfo(torch.bfloat16).eps / 2

    def changing(*factors: float) -> cp.QuadraticValidity:
        change = torch.tensor(factors, dtype=torch.float64) * unit / 0.05
        return cp.QuadraticValidity(
            found.sigmas, found.error, None, 0.05, found.verdicts, found.num_probes, found.stderr, change, -1.0
        )

    assert changing(0.1, 0.9, 1.0, 5.0).rounding_floor(torch.bfloat16) == pytest.approx(1e-2)
    assert changing(2.0, 0.9, 3.0, 5.0).rounding_floor(torch.bfloat16) == pytest.approx(1e-2)
    assert changing(2.0, 2.0, 3.0, 5.0).rounding_floor(torch.bfloat16) == pytest.approx(1e-4)
    assert changing(2.0, 2.0, 3.0, 0.5).rounding_floor(torch.bfloat16) is None
    larger = replace(changing(2.0, 2.0, 3.0, 5.0), loss=2.5)
    assert larger.rounding_floor(torch.bfloat16) == pytest.approx(1e-2)


def test_the_edges_of_a_verdict():
    bounds = {0.05: "valid", 0.0501: "marginal", 0.2: "marginal", 0.2001: "invalid", math.nan: "invalid"}
    assert {error: verdict_of(error, 0.05) for error in bounds} == bounds
