"""Types of weights, and wrappers around a model."""

import contextlib
import copy

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor
from torch.nn import functional

import curvprobe as cp
from tests.models.hand import ROUNDED, agrees, first_product, refused, rows

CE = cp.losses.cross_entropy
DOUBLE = torch.float64


def classifier(dtype: torch.dtype = DOUBLE) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).to(dtype)


def vectors(dtype: torch.dtype = DOUBLE) -> tuple[Tensor, Tensor]:
    return torch.randn(6, 3, dtype=dtype), torch.randint(3, (6,))


def check_works(model: nn.Module, plain: nn.Module | None = None, rtol: float = 1e-8, dtype=DOUBLE) -> None:
    """Hold a model against one that computes the same on the same weights in the usual way."""
    plain, (x, y) = model if plain is None else plain, vectors(dtype)
    risk = cp.EmpiricalRisk(model, CE, (x, y))
    agrees(risk, plain, lambda a, b: functional.cross_entropy(plain(a), b), rows(x, y), rtol)


# ---- precision


def test_float32_model():
    check_works(classifier(torch.float32), rtol=ROUNDED, dtype=torch.float32)


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision_model(low):
    model = classifier(low)
    check_works(model, copy.deepcopy(model).float(), ROUNDED, torch.float32)
    assert model[0].weight.dtype == low


class Adapted(nn.Module):
    """A frozen layer of lower precision, and a product of two thin matrices beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(3, 3).bfloat16().requires_grad_(False)
        self.down, self.up = nn.Linear(3, 2, bias=False), nn.Linear(2, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x.to(self.base.weight.dtype)).to(x.dtype) + self.up(self.down(x))


def test_adapters_on_a_low_precision_base():
    model = Adapted()
    check_works(model, copy.deepcopy(model).float(), ROUNDED, torch.float32)


class Autocast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = classifier(torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.net(x)


def test_autocast_inside():
    model = Autocast()
    check_works(model, model.net, ROUNDED, torch.float32)


class Rounded(nn.Module):
    """A frozen layer of 8-bit weights with a scale."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randint(-127, 128, (4, 3), dtype=torch.int8))
        self.register_buffer("scale", torch.rand(4, 1, dtype=DOUBLE) / 100)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight.to(x.dtype) * self.scale)


class Quantised(nn.Parameter):
    """A parameter with attributes that say how it is stored."""


class RoundedParameter(nn.Module):
    """The same as a parameter that carries its scale, as bitsandbytes has it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = Quantised(torch.randint(-127, 128, (4, 3), dtype=torch.int8), requires_grad=False)
        self.weight.scale = 0.01

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight.to(x.dtype) * self.weight.scale)


@pytest.mark.parametrize("base", [Rounded, RoundedParameter])
def test_frozen_8_bit_layer(base):
    check_works(nn.Sequential(base(), nn.Tanh(), nn.Linear(4, 3).double()))


@pytest.mark.filterwarnings("ignore:.*quantiz.*")  # torch moves this to another package
def test_dynamic_quantisation():
    model = classifier(torch.float32)
    model[0] = torch.ao.quantization.quantize_dynamic(nn.Sequential(model[0]), {nn.Linear})[0]
    with refused("do not depend on the rest of the batch"):
        cp.EmpiricalRisk(model, CE, vectors())


class Spectrum(nn.Module):
    """Complex weights; real outputs."""

    def __init__(self, *, trained: bool) -> None:
        super().__init__()
        self.filter = nn.Parameter(torch.randn(3, dtype=torch.complex128), requires_grad=trained)
        self.head = nn.Linear(3, 3).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.fft.ifft(torch.fft.fft(x) * self.filter).abs())


def test_complex_parameters():
    with refused("expected one real type"):
        cp.EmpiricalRisk(Spectrum(trained=True), CE, vectors())


def test_frozen_complex_parameters():
    check_works(Spectrum(trained=False))


def test_two_types_of_trained_parameters():
    model = nn.Sequential(nn.Linear(3, 4).float(), nn.Linear(4, 3).double())
    with refused("expected one real type"):
        cp.EmpiricalRisk(model, CE, vectors())


# ---- some of the parameters


def test_frozen_layer():
    model = classifier()
    model[0].requires_grad_(False)
    check_works(model)


def test_no_trainable_parameter():
    with refused("requires_grad_(True)"):
        cp.EmpiricalRisk(classifier().requires_grad_(False), CE, vectors())


class Shared(nn.Module):
    """One layer, used twice under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = self.first

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).tanh())


def test_shared_layer():
    check_works(Shared().double())


# ---- wrappers


def test_torchscript():
    x, _ = vectors()
    with pytest.warns(DeprecationWarning, match="deprecated"):
        traced = torch.jit.trace(classifier(), x)
    with refused("pass the Python module"):
        cp.EmpiricalRisk(traced, CE, vectors())


def test_compiled_model():
    plain = classifier()
    check_works(torch.compile(plain), plain)


def test_model_compiled_in_place():
    model = classifier()
    plain = copy.deepcopy(model)
    model.compile(backend="aot_eager")
    check_works(model, plain)


class CompiledFunction(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = classifier()
        self.activation = torch.compile(lambda x: x.sin() * x, backend="aot_eager")

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.net(x))


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # torch's own look at it while it compiles
def test_compiled_function_inside():
    with refused("pass the module that was not compiled"):
        first_product(cp.EmpiricalRisk(CompiledFunction(), CE, vectors()))


def test_data_parallel():
    plain = classifier()
    check_works(nn.DataParallel(plain), plain)


@contextlib.contextmanager
def process_group(folder):
    store = torch.distributed.FileStore(str(folder / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def test_distributed_data_parallel(tmp_path):
    with process_group(tmp_path):
        plain = classifier()
        check_works(nn.parallel.DistributedDataParallel(plain), plain)


def test_fully_sharded(tmp_path):
    with process_group(tmp_path):
        plain = classifier()
        check_works(fully_shard(copy.deepcopy(plain)), plain)


def test_divided_by_columns(tmp_path):
    with process_group(tmp_path):
        model, mesh = classifier(), DeviceMesh("cpu", [0])
        model[0].weight = nn.Parameter(distribute_tensor(model[0].weight.detach(), mesh, [Shard(1)]))
        with refused("expected rows over one, as fully_shard(module) makes them"):
            cp.EmpiricalRisk(model, CE, vectors(), group=torch.distributed.group.WORLD)


# ---- state


class Counting(nn.Module):
    """Keeps what passes through it, and how often it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.log = classifier(), []
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.log.append(self.net(x))
        self.calls += 1
        return self.log[-1]


def test_model_that_keeps_what_it_sees():
    model = Counting()
    check_works(model, model.net)
    assert (model.log, float(model.calls)) == ([], 0)
