"""Other directions than eigenvectors, and laws, of a model whose weights are divided: those of the whole model."""

import json

import torch

import curvprobe as cp
from curvprobe.curvature.covariance import covariance_product
from curvprobe.runtime.plain import to_json
from tests import cases, several
from tests.analysis.test_divided_weights import flat, risk_of, rows_of
from tests.analysis.test_several_processes import assert_same

NAMES = ("weighted", "convolution")


def directions(group, name):
    case = cases.make(name)
    risk = risk_of(case, group, microbatch_size=2)
    block = rows_of(risk, cases.block_of(risk.num_params, 2))
    spaces = {
        "random": cp.random_subspace(risk, 3),
        "gradients": cp.gradient_subspace(risk[:3]),
        "deformation": cp.deformation_subspace(risk, dim=2, tol=1e-9),
    }
    found = {"covariance": flat(risk, covariance_product(risk, block[:, 0]))}
    for label, space in spaces.items():
        columns, sample = flat(risk, space.basis), cp.project(risk, space)
        found |= {
            f"{label}: projector": columns @ columns.T,
            f"{label}: slopes": sample.gradient.norm(dim=1),
            f"{label}: curvatures": torch.linalg.eigvalsh(sample.hessian),
        }
    validity = cp.quadratic_validity(risk, [1e-3, 1e-2], num_probes=4, new=risk.on(case.candidates)[:2])
    found["validity"] = validity.error
    parts = cp.full_space_parts(risk, risk.on(case.candidates)[:3], sigma=0.1, num_probes=4)
    found |= {"full space": parts.value, "full space, shape": parts.shape, "full space, probes": parts.value_terms}
    for by in ("tensor", "filter"):
        found[f"deviation by {by}"] = flat(risk, cp.NormalizedProbe(0.1, by=by).deviation(risk))
    return found


def compared(group):
    """Shares of the full space, and the criterion under every law."""
    case = cases.make("layer_norm")
    risk = risk_of(case, group)
    candidates = risk.on(case.candidates)
    curve = cp.concentration_curve(risk, candidates, sigma=0.05, dim=2, num_probes=4)
    laws = cp.compare_laws(risk, candidates[:1], cp.default_laws(risk, cp.top_eigenspace(risk, dim=2, tol=1e-8), 0.05))
    return json.loads(to_json([curve.to_json(), laws.to_json()]))


def everything(group):
    return {name: directions(group, name) for name in NAMES}, compared(group)


def test_they_are_those_of_the_whole_model():
    whole, judged = everything(None)
    for found, also in several.values(2, everything):  # one launch for all
        for name in NAMES:
            assert found[name].keys() == whole[name].keys()
            for what, value in whole[name].items():
                assert float((found[name][what] - value).abs().max()) <= 1e-8 * float(value.abs().max()), (name, what)
        assert_same(also, judged)
