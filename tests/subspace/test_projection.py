"""Per-example statistics against double backward, one example and one direction at a time."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import curvprobe as cp
from curvprobe.curvature.per_example import TOGETHER
from curvprobe.risk.budget import SMALL_EXAMPLE, Budget
from curvprobe.runtime.digest import digest
from tests import cases, reference
from tests.cases import block_of
from tests.subspace.counted import counted

DIM = 3
CLOSE = {"rtol": 1e-10, "atol": 1e-8}


def orthonormal(n: int, dim: int = DIM, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(n, dim, generator=generator, dtype=torch.float64)).Q


def given(risk: cp.EmpiricalRisk, dim: int = DIM) -> cp.Subspace:
    return cp.Subspace.from_basis(orthonormal(risk.num_params, dim))


def naive_projection(case: cases.Case, U: Tensor, data=None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    params = reference.trainable(case.model)
    values, weights = reference.example_losses(case.model, case.loss, case.batches(data))
    slopes, bends = [], []
    for value in values:
        flat = reference.gradient(value, params, create_graph=True)
        slopes.append(U.T @ flat.detach())
        bends.append(U.T @ torch.stack([reference.gradient(flat @ u, params) for u in U.T], dim=1))
    losses = torch.stack([value.detach() for value in values])
    return losses, torch.tensor(weights, dtype=torch.float64), torch.stack(slopes), torch.stack(bends)


def same(first: cp.ProjectedSample, second: cp.ProjectedSample, **tolerance) -> bool:
    names = ("loss", "weight", "gradient", "hessian")
    tolerance = tolerance or CLOSE
    return all(torch.allclose(getattr(first, n), getattr(second, n), **tolerance) for n in names)


@pytest.fixture(params=["together", "one by one"])
def way(request):
    """Each of the two ways to differentiate the examples."""
    return request.param


def taking(way: str, risk: cp.EmpiricalRisk) -> cp.EmpiricalRisk:
    """The risk, whose examples go this way; together is what small ones do by themselves."""
    if way == "one by one":
        risk.probed.fast_paths.verdicts[TOGETHER] = False
    return risk


def together(risk: cp.EmpiricalRisk) -> bool | None:
    """Whether its examples were projected together; None where that was never tried."""
    return risk.probed.fast_paths.verdicts.get(TOGETHER)


def with_budget(risk: cp.EmpiricalRisk, budget: Budget) -> cp.EmpiricalRisk:
    return cp.EmpiricalRisk.of(risk.probed, risk.sample, budget, most=risk.microbatch_size)


def test_every_example_is_that_of_double_backward(case, way):
    risk, loss = counted(case)
    subspace = given(taking(way, risk))
    cp.mean_projection(risk, subspace)  # losses, weights and checks are done with: what follows is the projection
    before = loss.calls
    sample = cp.project(risk, subspace)
    passes = loss.calls - before
    losses, weights, slopes, bends = naive_projection(case, subspace.basis)
    assert torch.allclose(sample.loss, losses, **CLOSE)
    assert torch.equal(sample.weight, weights)
    assert torch.allclose(sample.gradient, slopes, **CLOSE)
    assert torch.allclose(sample.hessian, bends, **CLOSE)
    assert torch.equal(sample.hessian, sample.hessian.mT)
    assert (len(sample), sample.dim) == (len(risk), DIM)
    assert together(risk) == (way == "together")
    # Together a pass for the slopes and one for each direction, and one by double backward that confirms them.
    assert passes == (1 + DIM + 1 if way == "together" else len(risk))


@pytest.mark.parametrize(("activation", "expected"), [(SMALL_EXAMPLE, True), (SMALL_EXAMPLE + 1, None)])
def test_small_examples_are_differentiated_together_and_large_ones_are_not(activation, expected):
    made, loss = counted(cases.make("mlp"))
    risk = with_budget(made, replace(made.budget, footprint=replace(made.footprint, activation=activation)))
    cp.mean_projection(risk, given(risk))
    before = loss.calls
    cp.project(risk, given(risk))
    assert together(risk) is expected
    assert (loss.calls - before == len(risk)) == (expected is None)


def test_candidates_of_the_same_model():
    case = cases.make("weighted")
    risk = case.risk()
    fresh = cp.project(risk.on(case.candidates), given(risk))
    losses, weights, slopes, bends = naive_projection(case, given(risk).basis, case.candidates)
    assert same(fresh, cp.ProjectedSample(losses, weights, slopes, bends))


class Branching(nn.Module):
    """Cannot be vmapped: asks for the value of a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = cases.make("layer_norm").model

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) if x.abs().sum().item() < 1e9 else x


def test_a_model_without_batching_rules_is_differentiated_one_by_one():
    case = cases.make("layer_norm")
    risk = cp.EmpiricalRisk(Branching(), case.loss, case.data)
    subspace = given(risk)
    assert same(cp.project(risk, subspace), cp.project(case.risk(), subspace))
    assert together(risk) is False


def is_batched(x: Tensor) -> bool:
    """Whether vmap is at work on a tensor, beneath what other transforms of torch.func wrap it in."""
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(x):
        if functorch.is_batchedtensor(x):
            return True
        x = functorch.get_unwrapped(x)
    return False


class Lengthy(nn.Module):
    """On more than four steps it does something else where it sees many examples batched by vmap."""

    def __init__(self, batched_long) -> None:
        super().__init__()
        self.inner, self.batched_long = nn.Linear(2, 3, bias=False), batched_long

    def forward(self, x: Tensor) -> Tensor:  # (n, steps, 2)
        z = self.inner(x).tanh().sum(1)
        return self.batched_long(z) if x.shape[1] > 4 and is_batched(x) else z


def refuse(z: Tensor) -> Tensor:
    raise NotImplementedError("no batching rule")


def lengthy(batched_long) -> Lengthy:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Lengthy(batched_long).double()


def steps(n: int, length: int) -> tuple[Tensor, Tensor]:
    return block_of(n * length, 2, seed=length).view(n, length, 2), torch.arange(n) % 3


@pytest.mark.parametrize("batched_long", [lambda z: 1.001 * z, lambda z: z.detach(), lambda z: z * torch.nan, refuse])
def test_batching_that_is_wrong_for_longer_examples_only_is_found_out_there(batched_long):
    model = lengthy(batched_long)
    risk = cp.EmpiricalRisk(model, cp.losses.cross_entropy, steps(5, 4))
    subspace = given(risk)
    short = cp.project(risk, subspace)
    assert together(risk) is True
    longer = risk.on(steps(5, 6))
    found = cp.project(longer, subspace)
    assert together(risk) is False
    case = cases.Case(model, cp.losses.cross_entropy, steps(5, 6), None)
    assert same(found, cp.ProjectedSample(*naive_projection(case, subspace.basis)))
    assert same(cp.project(risk, subspace), short)


class Selective(nn.Module):
    """Goes wrong where it sees many examples batched by vmap: for those alone whose first input is positive."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        z = self.inner(x).tanh()
        return torch.where(x[:, :1] > 0, 1.001 * z, z) if is_batched(x) else z


@pytest.mark.parametrize("wrong", [0, 1, 5, 11])
def test_batching_that_is_wrong_for_one_example_of_many_is_found_out(wrong):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Selective().double()
    x, y = -block_of(12, 2).abs(), torch.arange(12) % 3
    x[wrong] *= -1
    risk = cp.EmpiricalRisk(model, cp.losses.cross_entropy, (x, y))
    subspace = given(risk)
    found = cp.project(risk, subspace)
    assert together(risk) is False
    case = cases.Case(model, cp.losses.cross_entropy, (x, y), None)
    assert same(found, cp.ProjectedSample(*naive_projection(case, subspace.basis)))


@pytest.mark.parametrize("first", [[1, 2], [2, 0]], ids=["no padding first", "padding first"])
def test_a_padding_row_is_a_constant_also_where_examples_go_together(first, way):
    class Text(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(3, 2, padding_idx=0), nn.Linear(2, 2)
            nn.init.constant_(self.embed.weight, 0.3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.embed(x).sum(1).tanh())

    with torch.random.fork_rng():
        torch.manual_seed(0)
        case = cases.Case(
            Text().double(), cp.losses.cross_entropy, (torch.tensor([first, [2, 0]]), torch.arange(2)), None
        )
    risk = taking(way, case.risk())
    subspace = given(risk, risk.num_params)
    found = cp.project(risk, subspace)
    assert together(risk) == (way == "together")
    assert same(found, cp.ProjectedSample(*naive_projection(case, subspace.basis)))


def test_what_torch_says_of_missing_batching_rules_is_not_the_users_to_read(recwarn):
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.GRU(2, 2, batch_first=True), nn.Linear(2, 2)

        def forward(self, x: Tensor, length: Tensor) -> Tensor:
            packed = nn.utils.rnn.pack_padded_sequence(x, length, batch_first=True, enforce_sorted=False)
            return self.head(self.rnn(packed)[1][0])

    data = {"x": block_of(12, 2).view(4, 3, 2), "length": torch.tensor([3, 2, 3, 1]), "labels": torch.arange(4) % 2}
    risk = cp.EmpiricalRisk(Packed().double(), cp.losses.cross_entropy, data)
    cp.project(risk, given(risk))
    cp.direct_monte_carlo(risk, risk[:1], cp.SubspaceProbe(given(risk), 0.1), num_probes=4)
    assert len(recwarn) == 0


@pytest.mark.parametrize("batched_long", [lambda z: 1.001 * z, refuse])
def test_a_sample_whose_later_examples_are_longer(batched_long):
    """What was begun together goes on one by one where batching raises or is wrong on the way."""
    (a, y), (b, _) = steps(4, 4), steps(4, 6)
    items = [*zip(a, y, strict=True), *zip(b, y, strict=True)]

    def collate(given: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        inputs, labels = zip(*given, strict=True)
        return nn.utils.rnn.pad_sequence(list(inputs), batch_first=True), torch.stack(labels)  # tanh(0) adds nothing

    def made() -> cp.EmpiricalRisk:
        return cp.EmpiricalRisk(
            lengthy(batched_long), cp.losses.cross_entropy, items, collate_fn=collate, microbatch_size=2
        )

    risk = made()
    subspace = given(risk)
    found = cp.project(risk, subspace)
    assert same(found, cp.project(taking("one by one", made()), subspace))
    assert together(risk) is False


def test_candidates_with_an_entry_that_is_no_tensor():
    """The sample's are tensors, and go together; the candidates' names are strings, which the loss reads."""
    x, y = cases.make("mlp").data

    def loss(outputs: Tensor, batch: dict) -> Tensor:
        losses = nn.functional.cross_entropy(outputs, batch["labels"], reduction="none")
        factors = [float(len(name)) for name in batch["name"]] if "name" in batch else [1.0]
        return losses * torch.tensor(factors, dtype=losses.dtype)

    def forward(model: nn.Module, batch: dict) -> Tensor:
        return model(batch["x"])

    model = cases.make("mlp").model
    risk = cp.EmpiricalRisk(model, loss, {"x": x, "labels": y}, forward=forward)
    subspace = given(risk)
    plain = cp.project(risk, subspace)
    assert together(risk) is True
    names = ["a", "bb", "ccc", "a", "bb", "ccc"]
    named = risk.on([{"x": a, "labels": b, "name": name} for a, b, name in zip(x, y, names, strict=True)])
    found = cp.project(named, subspace)
    assert together(risk) is False
    factors = torch.tensor([1.0, 2.0, 3.0] * 2, dtype=torch.float64)
    scaled = cp.ProjectedSample(
        plain.loss * factors,
        plain.weight,
        plain.gradient * factors[:, None],
        plain.hessian * factors[:, None, None],
    )
    assert same(found, scaled)


def test_examples_of_unequal_length_are_padded_only_among_themselves(way):
    tokens = [torch.randint(6, (length,), generator=torch.Generator().manual_seed(length)) for length in (6, 3, 5, 2)]

    def collate(items: list[Tensor]) -> dict[str, Tensor]:
        padded = nn.utils.rnn.pad_sequence(items, batch_first=True)
        labels = nn.utils.rnn.pad_sequence(items, batch_first=True, padding_value=-100)
        return {"input_ids": padded, "labels": labels}

    model = cases.make("weighted").model  # a recurrence: padding on the right does not reach back
    risk = cp.EmpiricalRisk(model, cp.losses.causal_lm, tokens, collate_fn=collate)
    alone = [cp.EmpiricalRisk(model, cp.losses.causal_lm, collate([t])) for t in tokens]
    sample = cp.project(taking(way, risk), given(risk))
    assert together(risk) == (way == "together")
    assert sample.weight.tolist() == [5.0, 2.0, 4.0, 1.0]
    for i, one in enumerate(alone):
        assert same(sample[i], cp.project(one, given(risk)))


@pytest.mark.parametrize("size", [1, 2, 4, 100])
@pytest.mark.parametrize("name", ["layer_norm", "weighted"])
def test_microbatches_do_not_matter(name, size):
    case = cases.make(name)
    subspace = given(case.risk())
    assert same(cp.project(case.risk(microbatch_size=size), subspace), cp.project(case.risk(), subspace))


def test_order_of_examples_does_not_matter():
    case = cases.make("weighted")
    risk = case.risk()
    order = [3, 0, 4, 2, 1]
    shuffled, sample = cp.project(risk[order], given(risk)), cp.project(risk, given(risk))
    assert same(shuffled, sample[order])
    assert same(shuffled.mean(), sample.mean())
    assert shuffled.digests == sample[order].digests


def test_rotating_the_basis_rotates_the_sample():
    risk = cases.make("layer_norm").risk()
    U, R = orthonormal(risk.num_params), orthonormal(DIM, DIM, seed=1)
    sample = cp.project(risk, cp.Subspace.from_basis(U))
    rotated = cp.project(risk, cp.Subspace.from_basis(U @ R))
    assert torch.allclose(rotated.gradient, sample.gradient @ R, **CLOSE)
    assert torch.allclose(rotated.hessian, R.T @ sample.hessian @ R, **CLOSE)
    assert torch.equal(rotated.loss, sample.loss)


@pytest.mark.parametrize("block", [1, 2, 5])
def test_directions_in_several_blocks_are_those_of_one(block):
    risk = taking("one by one", cases.make("mlp").risk())
    subspace = given(risk, dim=5)
    narrow = with_budget(risk, replace(risk.budget, total=2 * block * risk.footprint.vector))
    assert narrow.budget.products_held() == block < risk.budget.products_held()
    assert same(cp.project(narrow, subspace), cp.project(risk, subspace))


def test_a_selection_of_parameters_projects_the_sub_block():
    case = cases.make("mlp")
    risk = case.risk(params=["2.*"])
    U = orthonormal(risk.num_params)
    inside = torch.cat([torch.zeros(16, DIM, dtype=torch.float64), U])
    whole = cp.project(case.risk(), cp.Subspace.from_basis(inside))
    assert same(cp.project(risk, cp.Subspace.from_basis(U)), whole)


def test_float32_model_projects_in_float64():
    case = cases.make("layer_norm")
    exact = cp.project(case.risk(), given(case.risk()))
    single = cp.EmpiricalRisk(cases.make("layer_norm").model.float(), case.loss, case.data)
    sample = cp.project(single, given(case.risk()))
    assert sample.loss.dtype == sample.gradient.dtype == sample.hessian.dtype == torch.float64
    assert same(sample, exact, rtol=1e-4, atol=1e-5)


# ---- the mean --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["layer_norm", "weighted", "attention"])
def test_mean_projection_in_any_basis(name):
    risk = cases.make(name).risk()
    mean = cp.mean_projection(risk, given(risk))
    assert same(mean, cp.project(risk, given(risk)).mean())
    assert float(mean.weight) == risk.total_weight


def test_mean_projection_in_more_directions_than_a_block():
    """The graph of the first derivatives is made once, and serves all blocks."""
    risk, loss = counted(cases.make("mlp"))
    subspace = given(risk, 20)
    expected = cp.project(risk, subspace).mean()
    assert same(cp.mean_projection(risk, subspace), expected)
    before = loss.calls
    assert same(cp.mean_projection(risk, subspace), expected)
    assert risk.budget.products_held() < 20
    assert loss.calls - before == 1


@pytest.mark.parametrize("name", ["layer_norm", "weighted"])
def test_mean_projection_in_its_own_eigenspace_costs_no_product(name):
    risk, loss = counted(cases.make(name))
    subspace = cp.top_eigenspace(risk, dim=4, tol=1e-10)
    expected = cp.project(risk, subspace).mean()
    risk.gradient()  # known from here on
    before = loss.calls
    assert same(cp.mean_projection(risk, subspace), expected)
    assert same(cp.mean_projection(risk, subspace.truncate(2)), expected.truncate(2))
    assert loss.calls == before
    assert same(cp.mean_projection(risk, cp.Subspace.from_basis(subspace.basis)), expected)
    assert loss.calls > before


def test_eigenvalues_of_another_matrix_are_not_taken():
    """Of other examples, of other parameters, of the GGN, or of the covariance of the gradients."""
    case = cases.make("layer_norm")
    risk = case.risk()
    subspace = cp.top_eigenspace(risk, dim=3, tol=1e-10)
    moved = cases.make("layer_norm", seed=1).risk()
    ggn = cp.top_eigenspace(risk, dim=3, tol=1e-10, curvature="ggn")
    scatter = cp.deformation_subspace(risk, 3, tol=1e-10)
    others = [(risk[:4], subspace), (risk.on(case.candidates), subspace), (moved, subspace)]
    for other, space in (*others, (risk, ggn), (risk, scatter)):
        mean = cp.mean_projection(other, space)
        assert same(mean, cp.project(other, space).mean())
        assert float((mean.hessian[0].diagonal() - space.eigenvalues).abs().max()) > 1e-3


# ---- the sample ------------------------------------------------------------------------------------------------


def test_truncation_is_projection_on_the_leading_directions():
    risk = cases.make("layer_norm").risk()
    subspace = given(risk)
    sample = cp.project(risk, subspace)
    assert same(sample.truncate(2), cp.project(risk, subspace.truncate(2)))
    assert sample.truncate(2).digests == sample.digests
    with pytest.raises(ValueError, match="dim is 4"):
        sample.truncate(4)


def test_digests_are_those_of_the_examples():
    case = cases.make("mlp")
    sample = cp.project(case.risk(), given(case.risk()))
    assert sample.digests == tuple(digest((x, y), exact=False) for x, y in zip(*case.data, strict=True))


def test_subspace_of_another_model():
    risk = cases.make("mlp").risk()
    for call in (cp.project, cp.mean_projection):
        with pytest.raises(ValueError, match="lives in 30 parameters and the risk has 31"):
            call(risk, cp.Subspace.from_basis(orthonormal(30)))
        with pytest.raises(TypeError, match="expected a Subspace"):
            call(risk, orthonormal(31))


def test_the_model_is_left_as_it_was(way):
    case = cases.make("batch_norm")
    before = cases.state_of(case.model)
    risk = taking(way, case.risk())
    cp.project(risk, given(risk))
    assert cases.state_of(case.model) == before
