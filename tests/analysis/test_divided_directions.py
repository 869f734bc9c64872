"""Other directions than eigenvectors, and laws, of a model whose weights are divided: those of the whole model."""

import json

import torch

import curvprobe as cp
from curvprobe.curvature.covariance import covariance_product
from curvprobe.runtime.plain import to_json
from tests import cases, several
from tests.analysis.test_divided_weights import flat, risk_of, rows_of
from tests.analysis.test_several_processes import assert_same


def directions(group):
    case = cases.make("weighted")
    risk = risk_of(case, group)
    block = rows_of(risk, cases.block_of(risk.num_params, 2))
    spaces = {
        "random": cp.random_subspace(risk, 3),
        "gradients": cp.gradient_subspace(risk[:3]),
        "deformation": cp.deformation_subspace(risk, dim=1, tol=1e-9),
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
    filters = risk_of(cases.make("convolution"), group)
    for by in ("tensor", "filter"):
        found[f"deviation by {by}"] = flat(filters, cp.NormalizedProbe(0.1, by=by).deviation(filters))
    return found


def compared(group):
    """Shares of the full space, and the criterion under every law."""
    case = cases.make("mlp")
    risk = risk_of(case, group)
    candidates = risk.on(case.candidates)
    top = cp.top_eigenspace(risk, dim=2, tol=1e-8)
    spaces = {"top": top, "random": cp.random_subspace(risk, 2)}
    curve = cp.concentration_curve(risk, candidates[:1], sigma=0.05, subspaces=spaces, num_probes=4)
    laws = cp.default_laws(risk, top, 0.05)
    laws = cp.compare_laws(risk, candidates[:1], laws, num_probes=4, num_products=4)
    return json.loads(to_json([curve.to_json(), laws.to_json()]))


def everything(group):
    return directions(group), compared(group)


def test_they_are_those_of_the_whole_model():
    whole, judged = everything(None)
    for found, also in several.values(2, everything):  # one launch for all
        assert found.keys() == whole.keys()
        for what, value in whole.items():
            assert float((found[what] - value).abs().max()) <= 1e-8 * float(value.abs().max()), what
        assert_same(also, judged)
