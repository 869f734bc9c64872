import pytest
import torch

import curvprobe as cp
from curvprobe.errors import ArgumentTypeError
from tests import cases, several


def weighted(n: int = 120) -> cp.EmpiricalRisk:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(n, 3, generator=draw, dtype=torch.float64)
    terms = torch.randint(1, 60, (n,), generator=draw).double()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1)).double()

    def loss(outputs, batch):
        return (outputs[:, 0] - batch[1]).square() * batch[2], batch[2]

    return cp.EmpiricalRisk(model, loss, (x, x.sum(1), terms), microbatch_size=16)


def test_the_weight_and_the_loss_are_those_of_all():
    risk = weighted()
    part = cp.draw_examples(risk, 40, seed=3)
    assert len(part) == 40
    assert part.sample.size == 120
    assert part.total_weight == pytest.approx(risk.total_weight, rel=1e-12)
    assert part.value() == pytest.approx(risk.value(), rel=1e-12)


def test_every_quantity_is_the_mean_with_the_weights_that_the_examples_stand_for():
    risk = weighted()
    part, block = cp.draw_examples(risk, 40), cases.block_of(risk.num_params, 2)
    rows = [risk.digests().index(name) for name in part.digests()]
    share = part.weights / part.total_weight
    singles = [risk[[row]] for row in rows]
    assert torch.allclose(part.gradient(), sum(s * one.gradient() for s, one in zip(share, singles, strict=True)))
    for matrix in (cp.hessian, cp.ggn):
        expected = sum(s * (matrix(one) @ block) for s, one in zip(share, singles, strict=True))
        assert torch.allclose(matrix(part) @ block, expected)
    assert torch.allclose(part.losses(), risk.losses()[rows])
    moved = 0.1 * block[:, 0]
    value = float(share @ part.losses(moved)) + part.sample.offset
    assert part.value(moved) == pytest.approx(value, rel=1e-12)


def test_its_projection_knows_how_it_was_drawn(tmp_path):
    risk = weighted()
    part = cp.draw_examples(risk, 40)
    sample = cp.project(part, cp.random_subspace(risk, 2))
    assert (len(sample), sample.size) == (40, 120)
    assert float(sample.mean().loss) == pytest.approx(risk.value(), rel=1e-12)
    assert float(sample.mean().weight) == pytest.approx(risk.total_weight, rel=1e-12)
    sample.save(tmp_path / "sample")
    again = cp.ProjectedSample.load(tmp_path / "sample")
    assert torch.equal(again.design, sample.design)
    assert sample.truncate(1).size == 120


def test_the_risk_itself_where_all_are_taken():
    risk = weighted(20)
    assert cp.draw_examples(risk, 20) is risk
    assert cp.draw_examples(risk, 50) is risk


def test_what_makes_no_sense_is_refused():
    risk = weighted(20)
    with pytest.raises(cp.ArgumentError, match="count is 1"):
        cp.draw_examples(risk, 1)
    with pytest.raises(ArgumentTypeError, match=r"count is 2\.5"):
        cp.draw_examples(risk, 2.5)
    with pytest.raises(cp.ArgumentError, match="drawn examples itself"):
        cp.draw_examples(cp.draw_examples(risk, 10), 5)


def of_drawn(group):
    case = cases.make("weighted")
    risk = cp.draw_examples(case.risk(group=group), 5, seed=2)
    sample = cp.project(risk, cp.random_subspace(risk, 2))
    block = cases.block_of(risk.num_params, 2)
    return [risk.digests(), risk.weights, risk.gradient(), cp.hessian(risk) @ block, sample.hessian, sample.loss]


def test_processes_draw_the_same_examples():
    alone = of_drawn(None)
    for found in several.values(2, of_drawn):
        assert found[0] == alone[0]
        for mine, theirs in zip(found[1:], alone[1:], strict=True):
            assert torch.allclose(mine, theirs, rtol=1e-10, atol=1e-12)
