"""Other settings of a finished analysis, and its tables as frames."""

import pytest
import torch

import curvprobe as cp
from curvprobe.criteria.expected import PARTS, SOURCES


def test_a_sweep_needs_no_model(analysis):
    found = cp.sweep(analysis, sigma=[0.01, 0.1], dims=[1, 4], ks=[3, 30])
    expected = cp.decay_curve(analysis.sample, [3, 30], [0.01, 0.1], [1, 4], fresh=analysis.fresh)
    assert torch.equal(found.value, expected.value)
    assert torch.equal(found.stderr, expected.stderr)


def test_what_is_not_named_is_the_analysis_own(analysis):
    found = cp.sweep(analysis)
    assert (found.ks.tolist(), found.dims.tolist(), found.sigmas.tolist()) == ([30], [4], [analysis.sigma])
    assert float(found.value[0, 0, 0]) == pytest.approx(analysis.expected.value, rel=1e-12)


def test_curves_validity_and_expectations_are_frames(analysis):
    found = cp.sweep(analysis, sigma=[0.01, 0.1], dims=[1, 4], ks=[3, 10, 30])
    frame = found.to_dataframe()
    assert len(frame) == 12
    row = frame[(frame.k == 10) & (frame.dim == 4) & (frame.sigma == 0.1)].iloc[0]
    for name in ("value", "level", "slope", "curvature", "shape", "stderr", "shape_stderr"):
        assert row[name] == float(getattr(found, name)[1, 1, 1])
    assert row.delta1 == float(found.delta1[1])
    one = cp.sweep(analysis).to_dataframe()
    assert (len(one), one.k[0], one.dim[0]) == (1, 30, 4)
    checked = analysis.validity.to_dataframe()
    assert checked.verdict.tolist() == list(analysis.validity.verdicts)
    assert checked.increment_error.tolist() == analysis.validity.increment_error.tolist()
    assert checked.num_probes.tolist() == analysis.validity.num_probes.tolist()
    cells = analysis.expected.to_dataframe()
    assert [tuple(pair) for pair in cells[["source", "part"]].values] == [(s, p) for s in SOURCES for p in PARTS]
    assert cells.value.sum() == pytest.approx(analysis.expected.value, rel=1e-12)
    assert cells.stderr[4] == float(analysis.expected.table_stderr[1, 1])
