"""Each misuse is told apart, says what to do, and leaves the model as it was."""

from functools import partial

import numpy
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import curvprobe as cp
from tests import cases, reference
from tests.cases import state_of

CE = cp.losses.cross_entropy
X, Y = cases.make("mlp").data
BASIS = torch.eye(31, dtype=torch.float64)[:, :3]


def mlp():
    return cases.make("mlp").model


def make(model, loss=CE, data=(X, Y), **options):
    return cp.EmpiricalRisk(model, loss, data, **options)


def built(layers, training=False):
    return lambda: nn.Sequential(*layers()).double().train(training)


def subspace():
    return cp.Subspace(BASIS)


def eigenspace(*eigenvalues, matrix="hessian"):
    values = torch.tensor(eigenvalues, dtype=torch.float64)
    return cp.Eigenspace(BASIS, values, torch.zeros(3), torch.ones(3).bool(), matrix, "", 3, 0)


def increment():
    return cp.QuadraticIncrement(torch.tensor(1.0), torch.ones(3), torch.eye(3))


def sample(n=4, dim=3):
    return cp.ProjectedSample(torch.arange(n), torch.ones(n), torch.ones(n, dim), torch.zeros(n, dim, dim))


def at(rows, value):
    """A loss that is wrong for some examples, recognised by their inputs."""

    def loss(outputs, batch):
        bad = (batch[0][:, None] == X[rows]).all(-1).any(-1)
        return torch.where(bad, value, CE(outputs, batch))

    return loss


def weighing(weight):
    """Example-wise weights; those of the examples in the batch are picked by content."""

    def loss(outputs, batch):
        rows = (batch[0][:, None] == X).all(-1).long().argmax(1)
        return CE(outputs, batch) * weight[rows], weight[rows]

    return loss


class Noise(nn.Module):
    def forward(self, x):
        return functional.dropout(x, 0.5, training=True)


class Named(nn.Module):
    """Takes its input by name."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, features):
        return self.layer(features)


class Recurrent(nn.Module):
    """Given examples first, but its LSTM expects time first: it runs along the examples."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(3, 3)

    def forward(self, x):
        return self.lstm(x[:, None].expand(-1, 4, -1))[0].mean(1)


class Opaque(cases.SquareOnce):
    """Its backward runs a kernel that autograd does not see."""

    @staticmethod
    def backward(ctx, slope):
        return torch.from_numpy(2 * ctx.saved_tensors[0].detach().numpy() * slope.detach().numpy())


class Apply(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function.apply(x)


class Changing(Dataset):
    reads = 0

    def __len__(self):
        return 6

    def __getitem__(self, row):
        self.reads += 1
        return X[row] + self.reads, Y[row]


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(X, Y, strict=True))


def ctc(outputs, batch):
    logs = outputs.view(len(outputs), 4, 3).log_softmax(-1).transpose(0, 1)
    lengths = torch.full((len(outputs),), 4)
    return functional.ctc_loss(logs, 1 + batch[1][:, None] % 2, lengths, lengths // 4, reduction="none")


def distances(outputs, batch):
    return torch.cdist(outputs, torch.ones(1, 3, dtype=outputs.dtype))[:, 0]


def detached(outputs, batch):
    return CE(outputs.detach(), batch)


def silent(model):
    return make(model, loss=detached)


def curved(model, loss=CE, **options):
    risk = make(model, loss, **options)
    return cp.hessian(risk) @ torch.ones(risk.num_params)


def projected(model, loss=CE, **options):
    risk = make(model, loss, **options)
    return cp.project(risk, cp.random_subspace(risk, 2))


def pair(model, loss=CE, data=(X, Y), **options):
    return make(model, loss, data), make(model, loss, data, **options)


def eigen(model, dim=2, **options):
    return cp.top_eigenspace(make(model), dim, **options)


def draw(model, law, loss=CE, data=(X, Y), **options):
    return cp.direct_monte_carlo(*pair(model, loss, data), law, **options)


def late_change(model):
    items = [(x.clone(), y) for x, y in zip(X, Y, strict=True)]
    risk = make(model, data=items)
    risk.value()
    items[5][0].add_(1)
    return risk.gradient()


DROPOUT = built(lambda: (nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 3)), training=True)
NORM = built(lambda: (nn.Linear(3, 3), nn.BatchNorm1d(3)), training=True)
UNTRACKED = built(lambda: (nn.Linear(3, 3), nn.BatchNorm1d(3, track_running_stats=False)))
NOISY = built(lambda: (nn.Linear(3, 8), Noise(), nn.Linear(8, 3)))
GRU = built(lambda: (nn.GRU(3, 3, num_layers=2, dropout=0.5),), training=True)
LINEAR12 = built(lambda: (nn.Linear(3, 12),))
OPAQUE = built(lambda: (nn.Linear(3, 3), Apply(Opaque), nn.Linear(3, 3)))
FROZEN = built(lambda: (nn.Linear(3, 4).requires_grad_(False), nn.Linear(4, 3)))
ISOTROPIC = cp.IsotropicProbe(0.1)
SMALL = cp.Subspace.from_basis(torch.eye(5))
T, V = TypeError, ValueError

# What is done, on which model, and the error that says so.
MODELS = [
    ("dropout in train mode", make, V, r"1 \(Dropout\).*train mode.*random.*eval\(\)", DROPOUT),
    ("recurrent dropout", make, V, r"0 \(GRU\).*train mode.*eval\(\)", GRU),
    ("functional dropout", make, V, r"two evaluations.*functional dropout", NOISY),
    ("batch-norm in train mode", make, V, r"1 \(BatchNorm1d\).*train mode.*eval\(\)", NORM),
    ("batch-norm without statistics", make, V, "no running statistics.*track_running_stats=True", UNTRACKED),
    ("no trainable parameter", make, V, "all 4.*requires_grad_", lambda: mlp().requires_grad_(False)),
    ("no parameters", make, V, "the model has no parameters", nn.Tanh),
    ("not a module", lambda m: make(m.forward), T, r"model is a method; expected a torch\.nn\.Module"),
    ("class of a module", lambda m: make(nn.Linear), T, "model is a type; expected"),
    ("examples mixed by the model", lambda m: make(m).value(), V, "rest of the batch", lambda: Recurrent().double()),
    ("mixed dtypes", make, T, "dtypes.*expected one", lambda: nn.Sequential(nn.Linear(3, 3).double(), nn.Linear(3, 3))),
    (
        "keys of others",
        lambda m: make(m, data={"x": X, "labels": Y}),
        V,
        "'labels', 'x'.*'features'",
        lambda: Named().double(),
    ),
]
LOSSES = [
    ("scalar", lambda o, b: CE(o, b).mean(), V, r"scalar for 4 examples.*reduction='none'"),
    ("wrong shape", lambda o, b: o.square(), V, r"shape \(4, 3\) for 4 examples; expected \(4,\)"),
    ("number", lambda o, b: 1.0, T, "returned a float; expected a floating-point tensor"),
    ("integers", lambda o, b: b[1], T, "expected a floating-point tensor of one loss per example"),
    ("list", lambda o, b: list(CE(o, b)), T, "returned a list; expected"),
    ("torch's module", nn.CrossEntropyLoss(), T, r"torch's CrossEntropyLoss.*curvprobe\.losses"),
    ("torch's module unreduced", nn.MSELoss(reduction="none"), T, r"torch's MSELoss.*loss\(outputs, batch\)"),
    ("torch's function", functional.cross_entropy, T, r"torch's cross_entropy.*curvprobe\.losses"),
    ("torch's function, partial", partial(functional.cross_entropy, reduction="none"), T, r"loss\(outputs, batch\)"),
    ("not callable", "cross_entropy", T, r"loss is a str; expected a function loss\(outputs, batch\)"),
    ("NaN", at([1], torch.nan), V, r"loss of example 1 of 6 is nan at the solution"),
    ("NaN, late", at([5], torch.nan), V, r"loss of example 5 of 6 is nan at the solution"),
    ("infinite", at([0], torch.inf), V, r"loss of example 0 of 6 is inf at the solution"),
    ("infinite, late", at([4], torch.inf), V, r"loss of example 4 of 6 is inf at the solution"),
    ("weight of zero", weighing(torch.tensor([1, 1, 0, 1, 1, 1])), V, r"example 2 has weight 0\.0.*leave out"),
    ("weight of zero, late", weighing(torch.tensor([1, 1, 1, 1, 1, 0])), V, r"example 5 has weight 0\.0.*leave out"),
    ("negative weight", weighing(torch.tensor([1, -1, 1, 1, 1, 1])), V, r"example 1 has weight -1\.0"),
    ("shape of weights", lambda o, b: (CE(o, b), torch.ones(2)), V, r"weights have shape \(2,\) for 4 examples"),
    ("one weight", lambda o, b: (CE(o, b), 2.0), V, r"weights have shape \(\) for 4 examples"),
    ("centred", lambda o, b: CE(o, b) - CE(o, b).mean(), V, "example 0.*by itself.*rest of the batch"),
    ("accumulated", lambda o, b: CE(o, b).cumsum(0), V, "rest of the batch"),
]
DATA = [
    ("loader", DataLoader(TensorDataset(X, Y)), T, r"DataLoader.*loader\.dataset"),
    ("stream", Stream(), T, "IterableDataset.*fixed order"),
    ("array of words", (X, numpy.array(["a"] * len(X))), T, "NumPy array of <U1; expected numbers"),
    ("two tensors in a list", [X, Y], V, r"could not be collated.*collate_fn"),
    ("unequal tensors", (X, Y[:5]), V, r"lengths \[5, 6\]"),
    ("empty", (X[:0], Y[:0]), V, "no examples"),
    ("empty list", [], V, "no examples"),
    ("without targets", X, T, r"without a target; expected \(inputs, targets\)"),
]
OPTIONS = [
    ("collating tensors", {"collate_fn": list}, V, "collate_fn came with tensors"),
    ("microbatch of nothing", {"microbatch_size": 0}, V, "microbatch_size is 0; expected a positive"),
    ("half a microbatch", {"microbatch_size": 1.5}, V, r"microbatch_size is 1\.5; expected a positive"),
    ("string of params", {"params": "0.*"}, T, r"string '0\.\*'; expected a list"),
    ("unknown params", {"params": ["9.*"]}, V, r"'9\.\*' matches no parameter"),
    ("no params", {"params": lambda name: False}, V, "predicate accepts no trainable parameter"),
    ("tensors of params", {"params": mlp().parameters()}, T, "expected None, a predicate"),
]
CURVATURE = [
    ("frozen params", lambda m: make(m, params=["0.*"]), V, "matches frozen parameters only", FROZEN),
    ("CTC", lambda m: curved(m, ctc), V, "(?i)ctc.*no second derivative.*logsumexp", LINEAR12),
    ("CTC projected", lambda m: projected(m, ctc), V, "(?i)ctc.*no second derivative.*logsumexp", LINEAR12),
    ("no second derivative", lambda m: curved(m, distances), V, "cdist.*no second derivative"),
    ("no forward mode", lambda m: cp.ggn(make(m)) @ torch.ones(24), V, "missing or wrong second derivative", OPAQUE),
    ("detached", lambda m: silent(m).gradient(), V, "depends on no parameter.*detach"),
    ("detached, curvature", lambda m: curved(m, detached), V, "depends on no parameter"),
    ("detached, projected", lambda m: projected(m, detached), V, "depends on no parameter"),
    ("gradient", lambda m: make(m, lambda o, b: (0 * o).sum(1).sqrt()).gradient(), V, "gradient.*not finite"),
    ("second derivative", lambda m: curved(m, lambda o, b: (0 * o).sum(1).abs() ** 1.5), V, "product is not finite"),
    ("short vector", lambda m: cp.hessian(make(m)) @ torch.ones(30), V, r"shape \(30,\); expected.*31"),
    ("vectors as rows", lambda m: cp.ggn(make(m)) @ torch.ones(2, 31), V, r"shape \(2, 31\); expected.*31"),
    ("array as vector", lambda m: cp.hessian(make(m)) @ numpy.ones(31), T, "ndarray"),
    ("displacement", lambda m: make(m).losses(torch.ones(31, 1)), V, r"\(31, 1\); expected one flat vector"),
    ("no dimension", lambda m: eigen(m, 0), V, "dim is 0; expected.*31"),
    ("too many dimensions", lambda m: eigen(m, 32), V, "dim is 32; expected.*31"),
    ("half a dimension", lambda m: eigen(m, 1.5), V, r"dim is 1\.5; expected a whole number"),
    ("which", lambda m: eigen(m, which="largest"), V, "which is 'largest'; expected one of.*'algebraic'"),
    ("curvature", lambda m: eigen(m, curvature="fisher"), V, "curvature is 'fisher'; expected one of.*'ggn'"),
    ("no tolerance", lambda m: eigen(m, tol=0), V, "tol is 0; expected a number between 0 and 1"),
    ("budget", lambda m: eigen(m, 3, max_matvecs=2), V, "max_matvecs is 2; expected at least dim = 3"),
    ("random dimensions", lambda m: cp.random_subspace(make(m), 32), V, "dim is 32; expected 1 to.*31"),
    ("gradients", lambda m: cp.gradient_subspace(make(m, params=["2.bias"])), V, r"6 gradients of 3 param.*risk\[:D\]"),
    ("oblique basis", lambda m: cp.Subspace.from_basis(BASIS + 0.1), V, r"not orthonormal.*torch\.linalg\.qr"),
    ("flat basis", lambda m: cp.Subspace.from_basis(BASIS[:, 0]), T, r"tensor of shape \(N, D\)"),
    ("wide basis", lambda m: cp.Subspace.from_basis(BASIS.T), V, r"shape \(3, 31\); expected \(N, D\)"),
    ("subspace of others", lambda m: cp.project(make(m, params=["0.*"]), subspace()), V, "31 parameters.*16"),
    ("tensor as subspace", lambda m: cp.project(make(m), BASIS), T, r"is a Tensor; expected a Subspace.*from_basis"),
    ("data that changes", lambda m: make(m, data=Changing()), V, "not what it was.*augmentation"),
    ("data that changes later", late_change, V, "example 5 is not what it was"),
]
ESTIMATES = [
    ("dimensions of two samples", lambda m: cp.increment(sample(dim=2), sample(dim=3)), V, "2 directions.*3"),
    ("odd increment", lambda m: cp.QuadraticIncrement(0.0, torch.ones(3), torch.eye(2)), V, r"\(3,\) and \(2, 2\)"),
    ("several increments", lambda m: cp.gaussian_moment(cp.prefix_increments(sample()), sigma=1.0), V, "single"),
    *(
        (f"sigma {value}", act, V, "sigma.*(positive and finite|shape)")
        for value in (-1.0, 0.0, float("nan"), float("inf"), torch.ones(2), torch.tensor([1.0, 1.0, 0.0]))
        for act in (
            lambda m, value=value: cp.gaussian_moment(increment(), sigma=value),
            lambda m, value=value: cp.SubspaceProbe(subspace(), value),
        )
    ),
    ("sigma in words", lambda m: cp.gaussian_moment(increment(), sigma="auto"), T, "sigma is 'auto'; expected"),
    ("isotropic sigma", lambda m: cp.IsotropicProbe(-0.1), V, r"sigma is -0\.1"),
    ("one probe", lambda m: draw(m, ISOTROPIC, num_probes=1), V, "num_probes is 1; expected.*at least 2"),
    ("one draw", lambda m: cp.quadratic_monte_carlo(increment(), sigma=1, num_probes=1), V, "num_probes is 1"),
    ("power", lambda m: draw(m, ISOTROPIC, p=0.5), V, r"p is 0\.5; expected a finite number, at least 1"),
    ("number as law", lambda m: draw(m, 0.1), T, "law"),
    ("tensor as subspace of a law", lambda m: cp.SubspaceProbe(BASIS, 0.1), T, "Subspace"),
    ("law in another space", lambda m: draw(m, cp.SubspaceProbe(SMALL, 0.1)), V, "5 parameters.*31"),
    ("control", lambda m: cp.controlled_monte_carlo(*pair(m), cp.PointProbe()), T, "PointProbe.*not Gaussian"),
    ("two selections", lambda m: cp.direct_monte_carlo(*pair(m, params=["0.*"]), ISOTROPIC), V, r"risk\.on\(data\)"),
    ("probe too far", lambda m: draw(m, cp.IsotropicProbe(1e200), loss=cp.losses.mse, data=(X, X)), V, "smaller sigma"),
    ("Laplace below zero", lambda m: cp.LaplaceProbe(eigenspace(2, 1, -0.5), k=6), V, r"-0\.5.*raise damping"),
    ("Laplace without eigenvalues", lambda m: cp.LaplaceProbe(subspace(), k=6), V, "no eigenspace.*top_eigenspace"),
    (
        "Laplace of gradients",
        lambda m: cp.LaplaceProbe(eigenspace(3, 2, 1, matrix="gradient covariance"), k=6),
        V,
        "eigenspace of the gradient covariance.*top_eigenspace",
    ),
    ("k of zero", lambda m: cp.decay_curve(sample(), [0, 1]), V, r"ks is \[0, 1\]; expected.*1 to 3"),
    ("k beyond the sample", lambda m: cp.decay_curve(sample(), [4]), V, r"ks is \[4\]; expected.*1 to 3"),
    ("no k", lambda m: cp.decay_curve(sample(), []), V, r"ks is \[\]; expected"),
    ("no sigma", lambda m: cp.decay_curve(sample(), sigma=[]), V, "sigma"),
    ("dims", lambda m: cp.decay_curve(sample(), dims=[4]), V, r"dims is \[4\]; expected dimensions from 1 to 3"),
    ("dims of zero", lambda m: cp.decay_curve(sample(), dims=[0, 1]), V, r"dims is \[0, 1\]"),
    ("fresh examples elsewhere", lambda m: cp.decay_curve(sample(), fresh=sample(dim=1)), V, "3 directions.*1"),
    ("truncation", lambda m: sample().truncate(4), V, "dim is 4; expected 1 to 3"),
    ("validity of nothing", lambda m: cp.quadratic_validity(make(m), []), V, "sigmas is empty"),
]


def rows():
    for name, act, error, message, *model in MODELS + CURVATURE + ESTIMATES:
        yield pytest.param(act, error, message, *model or [mlp], id=name)
    for keyword, table in (("loss", LOSSES), ("data", DATA)):
        for name, value, error, message in table:
            act = partial(lambda m, options: make(m, **options).gradient(), options={keyword: value})
            yield pytest.param(act, error, message, mlp, id=f"{keyword}: {name}")
    for name, options, error, message in OPTIONS:
        yield pytest.param(partial(make, **options), error, message, mlp, id=name)


@pytest.mark.parametrize(("act", "error", "message", "build"), list(rows()))
def test_misuse(act, error, message, build):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build()
        before = state_of(model)
        with pytest.raises(error, match=message):
            act(model)
        assert state_of(model) == before


NORMALISED = built(lambda: (nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)), nn.Tanh(), nn.Linear(3, 3)))
ONCE = built(lambda: (nn.Linear(3, 3), Apply(cases.SquareOnce), nn.Linear(3, 3)))


@pytest.mark.parametrize("projection", [False, True], ids=["hessian", "project"])
@pytest.mark.parametrize("build", [ONCE, OPAQUE, NORMALISED], ids=["once differentiable", "opaque", "weight norm"])
def test_wrong_second_derivatives_are_never_silent(build, projection):
    """Double backward skips what it cannot see, and torch's of weight_norm is wrong: right or refused, never wrong."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build()
    risk = make(model)
    basis, before = cp.random_subspace(risk, 2), state_of(model)
    batches = [(X[i : i + 1], Y[i : i + 1]) for i in range(6)]
    slopes = [reference.finite_difference_product(model, CE, batches, vector) for vector in basis.basis.T]
    expected = basis.basis.T @ torch.stack(slopes, dim=1)
    try:
        if projection:
            found, message = cp.project(risk, basis).mean().hessian[0], ""
        else:
            found, message = basis.basis.T @ (cp.hessian(risk) @ basis.basis), ""
    except ValueError as error:
        found, message = expected, str(error)
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-8)
    assert not message or "second derivative" in message
    assert state_of(model) == before
