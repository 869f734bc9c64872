"""Layers of every kind, of which generated models are made; all take and give WIDTH features.

Each is legitimate: deterministic in eval mode, it does not mix examples, and autograd differentiates it twice.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTH = 4
"""Of all layers."""


class Function(nn.Module):
    """A function of the features, as a layer."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Weighted(nn.Module):
    """A function of the features and of parameters of any shape."""

    def __init__(self, function: Callable[..., Tensor], *shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.function = function
        self.weights = nn.ParameterList([nn.Parameter(0.6 * torch.randn(shape)) for shape in shapes])

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.weights)


class Strided(nn.Module):
    """A linear layer whose weight lies transposed in memory, and whose bias is every second number of another."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter((0.5 * torch.randn(WIDTH, WIDTH)).T)
        self.bias = nn.Parameter((0.3 * torch.randn(2 * WIDTH))[::2])

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight, self.bias)


class Buffered(nn.Module):
    """Scales by buffers, one of which is not saved; counts its calls in a buffer of integers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", 1 + 0.3 * torch.randn(WIDTH))
        self.register_buffer("shift", torch.randn(WIDTH), persistent=False)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("none", None)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.scale + self.shift


class TiedBuffers(nn.Module):
    """Two modules that hold one buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Buffered(), Buffered()
        self.second.scale, self.second.calls = self.first.scale, self.first.calls

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).tanh())


class Remembering(nn.Module):
    """Keeps what it saw, as models that are inspected do."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []
        self.last: Tensor | None = None
        self.total = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        self.last = x.detach()
        self.seen.append(self.last)
        self.total += 1
        return x.sin()


class Gate(nn.Module):
    """Two experts, each for some of the rows."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        out, gate = torch.zeros_like(x), x[..., 0] > 0
        for expert, rows in ((self.first, gate), (self.second, ~gate)):
            if rows.any():
                out = out.index_put((rows,), expert(x[rows]))
        return out


class Cube(torch.autograd.Function):
    """The third power, by a backward of its own that is differentiable."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, slope):
        return 3 * ctx.saved_tensors[0] ** 2 * slope


class Seeded(nn.Module):
    """Adds noise that is the same every time."""

    def __init__(self, own: bool) -> None:
        super().__init__()
        self.own = own

    def forward(self, x: Tensor) -> Tensor:
        if self.own:
            return x + torch.randn(WIDTH, generator=torch.Generator().manual_seed(3), dtype=x.dtype)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            return x + torch.randn(WIDTH, dtype=x.dtype)


class Frozen(nn.Module):
    """Frozen parameters of other types than the model's, beside a trainable one."""

    def __init__(self) -> None:
        super().__init__()
        self.single = nn.Parameter(torch.randn(WIDTH), requires_grad=False)
        self.whole = nn.Parameter(torch.arange(1, WIDTH + 1), requires_grad=False)
        self.free = nn.Parameter(torch.randn(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.single + self.free / self.whole


class Tied(nn.Module):
    """Two layers, and a function, of one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).tanh()) + x @ self.second.weight


class Normed(nn.Module):
    """Batch-norm with statistics of its own, over the last dimension of whatever comes."""

    def __init__(self, affine: bool = True) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(WIDTH, affine=affine)
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.3, 3.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.reshape(-1, WIDTH)).view(x.shape)


class Grouped(nn.Module):
    """Group-norm over the last dimension of whatever comes."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(2, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.reshape(-1, WIDTH)).view(x.shape)


class Slope(nn.Module):
    """A gradient in the inputs, as energy models have it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        at = x if x.requires_grad else x.detach().requires_grad_()
        return torch.autograd.grad(self.inner(at).sum(), at, create_graph=True)[0] + x


class Rotary(nn.Module):
    """Turns pairs of features by a complex buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("turn", torch.polar(torch.ones(WIDTH // 2), torch.randn(WIDTH // 2)))

    def forward(self, x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(pairs * self.turn.to(pairs.dtype)).flatten(-2)


class Bookkeeping(nn.Module):
    """Reads its own parameters in its forward, by a list that is made anew, and holds some in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ParameterDict({"a": torch.randn(WIDTH), "b": torch.randn(WIDTH)})

    def forward(self, x: Tensor) -> Tensor:
        size = sum(p.square().sum() for p in self.parameters())
        return x * self.parts["a"] / (1 + size) + self.parts["b"]


class Expanded(nn.Module):
    """A parameter of which all rows are one in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, WIDTH).expand(WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight).tanh()


class Norm(nn.Module):
    """A weight by its direction and size; torch's own has a wrong second derivative."""

    def forward(self, direction: Tensor, size: Tensor) -> Tensor:
        return size * direction / direction.square().sum(1, keepdim=True).sqrt()

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        return weight, weight.norm(dim=1, keepdim=True)


class Twins(nn.Module):
    """A layer of two inputs, given one twice."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, x)


class Residual(nn.Module):
    """What comes, and what a layer makes of it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, *more: Tensor | None) -> Tensor:
        return x + self.layer(x, *more)


class Twice(nn.Module):
    """One layer, used twice, and known by two names."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = self.again = layer

    def forward(self, x: Tensor, *more: Tensor | None) -> Tensor:
        return self.again(0.7 * self.layer(x, *more), *more)


class Recurrent(nn.Module):
    """A recurrent layer, one way: what comes later, padding too, does not change what came before."""

    def __init__(self, kind: type[nn.RNNBase], layers: int = 1) -> None:
        super().__init__()
        self.layer = kind(WIDTH, WIDTH, num_layers=layers, batch_first=True)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.layer(x)[0]


class Packed(nn.Module):
    """A recurrent layer both ways, given packed sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.GRU(WIDTH, WIDTH // 2, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(x, mask.sum(1), batch_first=True, enforce_sorted=False)
        return nn.utils.rnn.pad_packed_sequence(self.layer(packed)[0], batch_first=True, total_length=x.shape[1])[0]


class Cross(nn.Module):
    """A decoder layer that looks at what it was given itself."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerDecoderLayer(WIDTH, 2, 4, 0.1, batch_first=True)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.layer(x, x.sin(), tgt_key_padding_mask=~mask, memory_key_padding_mask=~mask)


class Attending(nn.Module):
    """Attention to what is not padding, perhaps only to what came before; by one of torch's three ways."""

    def __init__(self, way: str, causal: bool = False) -> None:
        super().__init__()
        self.way, self.causal = way, causal
        if way == "layer":
            self.layer = nn.TransformerEncoderLayer(WIDTH, 2, 5, 0.1, "gelu", batch_first=True, norm_first=causal)
        elif way == "mha":
            self.layer = nn.MultiheadAttention(WIDTH, 2, dropout=0.1, batch_first=True, bias=not causal)
        else:
            self.layer = nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        length, later = x.shape[1], None
        if self.causal:
            later = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
        if self.way == "layer":
            return self.layer(x, src_mask=later, src_key_padding_mask=~mask)
        if self.way == "mha":
            return self.layer(x, x, x, key_padding_mask=~mask, attn_mask=later, need_weights=self.causal)[0]
        q, k, v = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in self.layer(x).chunk(3, -1))
        seen = mask[:, None, None, :] if later is None else mask[:, None, None, :] & ~later
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(1, 2).flatten(2)
