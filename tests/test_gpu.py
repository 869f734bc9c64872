"""The same numbers on an accelerator as on the processor; skipped where there is none."""

from dataclasses import replace

import pytest
import torch

import curvprobe as cp
from curvprobe.experiments import convergence, error_map, timing, validity
from curvprobe.experiments.options import Options
from curvprobe.experiments.run import run_experiment
from curvprobe.numerics import linalg, noise
from curvprobe.tasks.text import nanochat
from tests import cases
from tests.experiments.tiny import GROWTH, TINY

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def moved(value):
    """A batch on the device."""
    if isinstance(value, torch.Tensor):
        return value.cuda()
    if isinstance(value, dict):
        return {name: tensor.cuda() for name, tensor in value.items()}
    return tuple(tensor.cuda() for tensor in value)


def pair(name):
    """A case on both, float64."""
    here, there = cases.make(name), cases.make(name)
    there.model.cuda()
    return here, replace(there, data=moved(there.data), candidates=moved(there.candidates))


def close(found, expected, rtol=1e-8, atol=1e-12):
    found, expected = torch.as_tensor(found).double().cpu(), torch.as_tensor(expected).double().cpu()
    assert torch.allclose(found, expected, rtol=rtol, atol=atol), f"{found} against {expected}"


@pytest.mark.parametrize("name", list(cases.CASES))
def test_an_analysis_has_the_same_numbers(name):
    here, there = pair(name)
    risk = here.risk()
    options = {"dim": 3, "sigma": 1e-2, "tol": 1e-6, "num_probes": 16, "concentration": True, "laws": True}
    expected = cp.analyze(risk, here.candidates, **options)
    found = cp.analyze(there.risk(), there.candidates, **options)
    close(found.spectrum.eigenvalues, expected.spectrum.eigenvalues)
    close(found.sample.loss, expected.sample.loss)
    for which in ("direct", "controlled"):
        close(getattr(found, which).value, getattr(expected, which).value, rtol=1e-6)
    assert found.verdict == expected.verdict
    vector = torch.randn(risk.num_params, dtype=torch.float64)
    close(cp.hessian(there.risk()) @ vector.cuda(), cp.hessian(risk) @ vector)
    close(cp.ggn(there.risk()) @ vector.cuda(), cp.ggn(risk) @ vector)


@pytest.mark.parametrize("name", ["mlp", "weighted"])
def test_the_whole_space_has_the_same_numbers(name):
    found = []
    for case in pair(name):
        risk = case.risk()
        new = risk.on(case.candidates)
        parts = cp.full_space_parts(risk, new, sigma=1e-2, num_probes=8)
        law = cp.IsotropicProbe(1e-2)
        moments = [
            cp.full_space_moment(risk, new[:1], sigma=1e-2, num_probes=8).value,
            cp.direct_monte_carlo(risk, new[:1], law, num_probes=8).value,
        ]
        found.append(torch.cat([parts.slope.cpu(), parts.curvature.cpu(), torch.tensor(moments).double()]))
    close(*found)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_language_model_in_float32(compiled):
    model = nanochat(
        vocab_size=300,
        max_position_embeddings=16,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    ).eval()
    tokens = torch.randint(300, (12, 16), generator=torch.Generator().manual_seed(0))
    expected = cp.top_eigenspace(cp.EmpiricalRisk(model, cp.losses.causal_lm, tokens), dim=4)
    risk = cp.EmpiricalRisk(model.cuda(), cp.losses.causal_lm, tokens.cuda())
    found = cp.top_eigenspace(risk, dim=4)
    close(found.eigenvalues, expected.eigenvalues, rtol=1e-4)
    assert bool(found.converged.all())
    vector = torch.randn(risk.num_params, device="cuda")
    product = cp.hessian(risk, compile=compiled) @ vector
    close(product, cp.hessian(risk.in_double()) @ vector.double(), rtol=1e-3, atol=1e-4 * float(product.abs().max()))


@pytest.mark.filterwarnings("ignore::curvprobe.ConvergenceWarning")  # which pair is the last may be in doubt there
@pytest.mark.parametrize(
    ("name", "settings", "literal"),
    [
        ("decay", replace(GROWTH, seeds=1), True),
        ("ratio", replace(GROWTH, seeds=1), True),
        ("validity", validity.Settings(TINY, trained=64, sigmas=(1e-3, 1e-2), num_probes=2, seeds=1), False),
        ("convergence", convergence.Settings(TINY, trained=64, dim=3, draws=(16, 64), seeds=1), True),
        ("error-map", error_map.Settings(TINY, trained=64, dims=(1, 3), sigmas=(1e-3, 1e-1), seeds=1), True),
        ("timing", timing.Settings(TINY, trained=64, dim=3, num_probes=8, seeds=1), False),
    ],
)
def test_every_experiment_runs_on_it(name, settings, literal, tmp_path):
    done = run_experiment(
        name, settings=settings, options=Options(literal=literal, device="cuda"), out=tmp_path, say=lambda _: None
    )
    assert done.findings


def test_long_random_vectors_are_those_of_the_processor():
    def drawn(make, device, dtype):
        return make(torch.Generator().manual_seed(3), 300_001, dtype=dtype, device=device).cpu()

    assert torch.equal(*(drawn(noise.normal_vector, device, torch.float32) for device in ("cpu", "cuda")))
    assert torch.equal(*(drawn(noise.sign_vector, device, torch.float32) for device in ("cpu", "cuda")))
    both = [drawn(noise.normal_vector, device, torch.float64) for device in ("cpu", "cuda")]
    assert torch.allclose(*both, rtol=1e-13, atol=1e-14)


def test_sums_over_a_basis_are_those_of_float64():
    rows, vector = torch.randn(5, 100_003, device="cuda"), torch.randn(100_003, device="cuda")
    exact = rows.double() @ vector.double()
    scale = rows.double().norm(dim=1) * vector.double().norm()
    assert bool(((linalg.quick_inner(rows, vector) - exact).abs() <= 1e-8 * scale).all())
    assert linalg.quick_inner(rows[:0], vector).shape == (0,)
