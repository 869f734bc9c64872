from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """The same weights and examples every time; the global generator is left alone."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
