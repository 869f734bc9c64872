import pytest
import torch

import curvprobe as cp


@pytest.fixture(scope="session")
def analysed() -> cp.Analysis:
    """A small network at its minimum, with many candidates."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        x = torch.randn(330, 4, dtype=torch.float64)
        y = (x[:, 0] + 0.5 * x[:, 1] * x[:, 2])[:, None]
        model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 1)).double()
        optimizer = torch.optim.LBFGS(model.parameters(), max_iter=300, line_search_fn="strong_wolfe")

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = torch.nn.functional.mse_loss(model(x[:60]), y[:60])
            loss.backward()
            return loss

        optimizer.step(closure)
    risk = cp.EmpiricalRisk(model, cp.losses.mse, (x[:60], y[:60]))
    return cp.analyze(risk, (x[60:], y[60:]), dim=4, sigma=0.01, tolerance=1e-3, num_probes=16)
