"""Expressions that use each operation so that it bends, in parameters p0 and p1 and an example x of six numbers."""

import torch
from torch import Tensor
from torch.nn import functional


def curved(x: Tensor) -> Tensor:
    """A scalar of what an operation returns, by which its adjoint is no constant."""
    return (x * torch.linspace(0.5, 1.5, x.numel(), dtype=x.dtype).reshape(x.shape)).sum().tanh() + (x**2).sum() / 7


def positive(x: Tensor) -> Tensor:
    return x**2 + 0.3


EXPRESSIONS = {
    "tanh": lambda p, x: curved(torch.tanh(p["p0"] * x)),
    "sigmoid": lambda p, x: curved(torch.sigmoid(p["p0"] * x)),
    "exp": lambda p, x: curved(torch.exp(p["p0"] * x / 3)),
    "exp2": lambda p, x: curved(torch.exp2(p["p0"] * x / 3)),
    "expm1": lambda p, x: curved(torch.expm1(p["p0"] * x / 3)),
    "log": lambda p, x: curved(torch.log(positive(p["p0"] * x))),
    "log1p": lambda p, x: curved(torch.log1p(positive(p["p0"] * x))),
    "log2": lambda p, x: curved(torch.log2(positive(p["p0"] * x))),
    "sqrt": lambda p, x: curved(torch.sqrt(positive(p["p0"] * x))),
    "rsqrt": lambda p, x: curved(torch.rsqrt(positive(p["p0"] * x))),
    "reciprocal": lambda p, x: curved(torch.reciprocal(positive(p["p0"] * x))),
    "sin": lambda p, x: curved(torch.sin(p["p0"] * x)),
    "cos": lambda p, x: curved(torch.cos(p["p0"] * x)),
    "sinh": lambda p, x: curved(torch.sinh(p["p0"] * x / 2)),
    "cosh": lambda p, x: curved(torch.cosh(p["p0"] * x / 2)),
    "atan": lambda p, x: curved(torch.atan(p["p0"] * x)),
    "erf": lambda p, x: curved(torch.erf(p["p0"] * x)),
    "pow": lambda p, x: curved(positive(p["p0"] * x) ** 1.7 + (p["p0"] * x) ** 3 + (p["p0"] * x) ** 2),
    "pow, plain exponents": lambda p, x: curved((p["p0"] * x) ** 1 + (p["p0"] * x) ** 0 + (0 * p["p0"]) ** 2),
    "gelu": lambda p, x: curved(functional.gelu(p["p0"] * x)),
    "gelu, tanh": lambda p, x: curved(functional.gelu(p["p0"] * x, approximate="tanh")),
    "silu": lambda p, x: curved(functional.silu(p["p0"] * x)),
    "softplus": lambda p, x: curved(functional.softplus(p["p0"] * x, beta=2.0, threshold=1.5)),
    "elu": lambda p, x: curved(functional.elu(p["p0"] * x, alpha=0.7) + functional.selu(p["p0"] * x)),
    "celu": lambda p, x: curved(functional.celu(p["p0"] * x, 0.6)),
    "log_sigmoid_forward": lambda p, x: curved(functional.logsigmoid(p["p0"] * x)),
    "relu": lambda p, x: curved(torch.relu(p["p0"] * x)),
    "abs": lambda p, x: curved(torch.abs(p["p0"] * x)),
    "leaky_relu": lambda p, x: curved(functional.leaky_relu(p["p0"] * x, 0.2)),
    "threshold": lambda p, x: curved(functional.threshold(p["p0"] * x, 0.1, 0.7)),
    "hardtanh": lambda p, x: curved(functional.hardtanh(p["p0"] * x, -0.4, 0.6)),
    "clamp": lambda p, x: curved(torch.clamp(p["p0"] * x, -0.4, 0.6)),
    "clamp_min": lambda p, x: curved((p["p0"] * x).clamp_min(0.1)),
    "clamp_max": lambda p, x: curved((p["p0"] * x).clamp_max(0.1)),
    "maximum": lambda p, x: curved(torch.maximum(p["p0"] * x, p["p1"] * x)),
    "minimum": lambda p, x: curved(torch.minimum(p["p0"] * x, p["p1"] * x) + torch.minimum(p["p0"], p["p0"])),
    "add": lambda p, x: curved(torch.add(p["p0"] * x, p["p1"][:1], alpha=3) + x + p["p1"] + 2.0),
    "sub": lambda p, x: curved(torch.sub(p["p0"] * x, p["p1"][:1] ** 2, alpha=3) - x - (1.5 - p["p1"] * x)),
    "rsub": lambda p, x: curved(torch.rsub(p["p0"] * x, p["p1"] ** 2, alpha=2) + torch.rsub(p["p0"], x, alpha=3)),
    "rsub, of a constant": lambda p, x: curved(torch.rsub(x, p["p1"] ** 2, alpha=2)),
    "mul": lambda p, x: curved(p["p0"] * p["p1"] * x * 2.0 + p["p0"][:1] * p["p1"]),
    "mul, of a square": lambda p, x: curved((p["p0"] * p["p0"]) * x),
    "div": lambda p, x: curved((p["p0"] * x) / positive(p["p1"]) + x / positive(p["p0"]) + p["p0"] / positive(x)),
    "mm": lambda p, x: curved((p["p0"].view(2, 3) @ p["p1"].view(3, 2)) @ x.view(2, 3) + x.view(2, 3)),
    "mm, of a constant": lambda p, x: (
        curved(x.view(2, 3) @ p["p1"].view(3, 2)) + curved(p["p0"].view(3, 2) @ x.view(2, 3))
    ),
    "addmm": lambda p, x: curved(
        torch.addmm(p["p0"][:2], x.view(2, 3) * p["p0"].view(2, 3), p["p1"].view(3, 2), beta=0.5, alpha=2)
    ),
    "addmm, a moving bias": lambda p, x: curved(torch.addmm(p["p0"][:2], x.view(2, 3), x.view(3, 2))),
    "addmm, a still bias": lambda p, x: curved(torch.addmm(x[:2], (p["p0"] * x).view(2, 3), p["p1"].view(3, 2))),
    "bmm": lambda p, x: (
        curved(torch.bmm((p["p0"] * x).view(2, 1, 3), p["p1"].view(2, 3, 1).expand(2, 3, 2)))
        + curved(torch.bmm((p["p0"] * x).view(2, 3, 1), p["p1"].view(2, 1, 3)[:, :, :2]))
    ),
    "bmm, of a constant": lambda p, x: (
        curved(torch.bmm(x.view(2, 1, 3), p["p1"].view(2, 3, 1)))
        + curved(torch.bmm(p["p0"].view(2, 1, 3), x.view(2, 3, 1)))
    ),
    "baddbmm": lambda p, x: curved(
        torch.baddbmm(p["p0"][:1], (p["p0"] * x).view(2, 1, 3), p["p1"].view(2, 3, 1), beta=0.5, alpha=2)
    ),
    "mv": lambda p, x: curved((p["p0"] * x).view(2, 3) @ p["p1"][:3]) + curved(x.view(2, 3) @ p["p1"][3:]),
    "convolution": lambda p, x: curved(
        functional.conv1d((p["p0"] * x).view(1, 2, 3), p["p1"].view(1, 2, 3), p["p0"][:1], padding=1)
    ),
    "convolution, grouped": lambda p, x: curved(
        functional.conv1d((p["p0"] * x).view(1, 2, 3), p["p1"].view(2, 1, 3), stride=2, padding=2, groups=2)
    ),
    "convolution, transposed": lambda p, x: curved(
        functional.conv_transpose2d((p["p0"] * x).view(1, 2, 1, 3), p["p1"].view(2, 1, 3, 1), stride=2)
    ),
    "_softmax": lambda p, x: (
        curved(torch.softmax((p["p0"] * x).view(2, 3), 1)) + curved(torch.softmax((p["p1"] * x).view(2, 3), 0))
    ),
    "_safe_softmax": lambda p, x: curved(torch.ops.aten._safe_softmax((p["p0"] * x).view(2, 3), -1)),
    "_log_softmax": lambda p, x: (
        curved(torch.log_softmax((p["p0"] * x).view(2, 3), 1)) + curved(torch.log_softmax((p["p1"] * x).view(2, 3), 0))
    ),
    "logsumexp": lambda p, x: (
        curved(torch.logsumexp((p["p0"] * x).view(2, 3), 1))
        + curved(torch.logsumexp((p["p1"] * x).view(2, 3), (0, 1), keepdim=True))
    ),
    "native_layer_norm": lambda p, x: (
        curved(functional.layer_norm((p["p0"] * x).view(2, 3), (3,), p["p1"][:3], p["p1"][3:]))
        + curved(functional.layer_norm((p["p0"] * x).view(1, 2, 3), (2, 3)))
    ),
    "native_layer_norm, of a constant": lambda p, x: curved(functional.layer_norm(x.view(2, 3), (3,), p["p1"][:3])),
    "native_group_norm": lambda p, x: (
        curved(functional.group_norm((p["p0"] * x).view(1, 2, 3), 1, p["p1"][:2], p["p1"][2:4]))
        + curved(functional.group_norm((p["p0"] * x).view(1, 2, 3), 2))
    ),
    "native_group_norm, of a constant": lambda p, x: curved(functional.group_norm(x.view(1, 2, 3), 1, p["p1"][:2])),
    "native_batch_norm": lambda p, x: (
        curved(
            functional.batch_norm(
                (p["p0"] * x).view(1, 2, 3),
                torch.full((2,), 0.2).double(),
                torch.full((2,), 1.4).double(),
                p["p1"][:2],
                p["p1"][2:4],
            )
        )
        + curved(functional.instance_norm((p["p0"] * x).view(1, 2, 3), weight=p["p1"][:2], bias=p["p1"][2:4]))
    ),
    "native_batch_norm, of a constant": lambda p, x: curved(
        functional.batch_norm(x.view(1, 2, 3), torch.zeros(2).double(), torch.ones(2).double(), p["p1"][:2])
    ),
    "var": lambda p, x: (
        curved((p["p0"] * x).view(2, 3).var(1))
        + curved((p["p1"] * x).view(2, 3).var((0, 1), correction=0))
        + curved((p["p1"] * x).view(2, 3).var(0, keepdim=True))
        + (p["p0"] * x).var()
    ),
    "mse_loss": lambda p, x: (
        curved(functional.mse_loss(p["p0"] * x, p["p1"], reduction="none"))
        + functional.mse_loss(p["p0"] * x, x).tanh()
        + functional.mse_loss(x, p["p1"], reduction="sum").tanh()
    ),
    "nll_loss_forward": lambda p, x: functional.nll_loss((p["p0"] * x).view(2, 3) ** 2, (x[:2] > 0).long()),
    "nll_loss2d_forward": lambda p, x: functional.nll_loss(
        ((p["p0"] * x) ** 2).view(1, 3, 2, 1), (x[:2] > 0).long().view(1, 2, 1)
    ),
    "embedding": lambda p, x: curved(
        functional.embedding((x[:4] > 0).long().view(2, 2), p["p0"].view(2, 3)) * p["p1"][:3]
    ),
    "masked_fill": lambda p, x: curved((p["p0"] * x).masked_fill(x > 0, 3.0)),
    "amax": lambda p, x: (
        curved((p["p0"] * x).view(2, 3).amax(1)) + curved((p["p1"] * x).view(2, 3).amax((0, 1), keepdim=True))
    ),
    "amin": lambda p, x: curved((p["p0"] * x).view(2, 3).amin(0)) + (p["p1"] * x).amin(),
    "max": lambda p, x: (
        curved((p["p0"] * x).view(2, 3).max(1).values) + curved((p["p1"] * x).view(2, 3).max(0, keepdim=True)[0])
    ),
    "min": lambda p, x: curved((p["p0"] * x).view(2, 3).min(1).values),
    "median": lambda p, x: curved((p["p0"] * x).view(2, 3).median(1).values),
    "kthvalue": lambda p, x: curved((p["p0"] * x).view(2, 3).kthvalue(2, 1).values),
    "topk": lambda p, x: curved((p["p0"] * x).view(2, 3).topk(2, 1).values),
    "sort": lambda p, x: curved((p["p0"] * x).view(2, 3).sort(1, descending=True).values),
    "cummax": lambda p, x: curved((p["p0"] * x).view(2, 3).cummax(1).values),
    "cummin": lambda p, x: curved((p["p0"] * x).view(2, 3).cummin(1).values),
    "max_pool2d_with_indices": lambda p, x: curved(
        functional.max_pool2d((p["p0"] * x).view(1, 1, 2, 3), (1, 2), stride=1)
    ),
    "cat": lambda p, x: curved(torch.cat([p["p0"] * x, x, p["p1"]])),
    "stack": lambda p, x: curved(torch.ops.aten.stack([p["p0"] * x, x, p["p1"]])),
    "where": lambda p, x: curved(torch.where(x > 0, p["p0"] * x, x) + torch.where(x > 0, p["p0"], p["p1"])),
    "index_put": lambda p, x: curved((p["p0"] * x).index_put((torch.tensor([1, 3]),), p["p1"][:2])),
    "scatter": lambda p, x: curved((p["p0"] * x).scatter(0, torch.tensor([1, 3]), p["p1"][:2])),
    "scatter_add": lambda p, x: curved(torch.zeros_like(x).scatter_add(0, torch.tensor([1, 3]), p["p1"][:2] * x[:2])),
    "index_add": lambda p, x: curved((p["p0"] * x).index_add(0, torch.tensor([1, 1]), p["p1"][:2])),
    "slice_scatter": lambda p, x: curved(torch.slice_scatter(x, p["p0"][:2], 0, 1, 3)),
    "select_scatter": lambda p, x: curved(torch.select_scatter(p["p0"] * x, x[0], 0, 1)),
    "diagonal_scatter": lambda p, x: curved(torch.diagonal_scatter(x.view(2, 3), p["p0"][:2])),
}

BESIDE = {
    "alias": lambda v: torch.ops.aten.alias(v),
    "view": lambda v: v.view(3, 2),
    "_unsafe_view": lambda v: torch.ops.aten._unsafe_view(v, [3, 2]),
    "t": lambda v: v.view(2, 3).t(),
    "transpose": lambda v: v.view(1, 2, 3).transpose(0, 2),
    "permute": lambda v: v.view(1, 2, 3).permute(2, 0, 1),
    "expand": lambda v: v.expand(2, 6),
    "slice": lambda v: v[1:5:2],
    "select": lambda v: v.view(2, 3)[1],
    "squeeze": lambda v: v.view(1, 6).squeeze(0),
    "unsqueeze": lambda v: v.unsqueeze(1),
    "clone": lambda v: v.clone(),
    "_to_copy": lambda v: v.float(),
    "neg": lambda v: -v,
    "sum": lambda v: v.view(2, 3).sum(0),
    "mean": lambda v: v.view(2, 3).mean(1, keepdim=True),
    "split": lambda v: torch.cat(torch.ops.aten.split(v, 2)[1:]),
    "split_with_sizes": lambda v: torch.cat(v.split([2, 4])[::-1]),
    "unbind": lambda v: v.view(2, 3).unbind(0)[1],
    "unfold": lambda v: v.unfold(0, 3, 2),
    "repeat": lambda v: v.repeat(2, 2),
    "flip": lambda v: v.flip(0),
    "roll": lambda v: v.roll(2),
    "cumsum": lambda v: v.cumsum(0),
    "diagonal": lambda v: v.view(2, 3).diagonal(),
    "tril": lambda v: v.view(2, 3).tril(),
    "triu": lambda v: v.view(2, 3).triu(),
    "index": lambda v: v[torch.tensor([0, 0, 4])],
    "index_select": lambda v: v.index_select(0, torch.tensor([0, 0, 4])),
    "gather": lambda v: v.gather(0, torch.tensor([0, 0, 4])),
    "avg_pool2d": lambda v: functional.avg_pool2d(v.view(1, 1, 2, 3), (1, 2), stride=1),
    "avg_pool3d": lambda v: functional.avg_pool3d(v.view(1, 1, 1, 2, 3), (1, 1, 2), stride=1),
    "_adaptive_avg_pool2d": lambda v: torch.ops.aten._adaptive_avg_pool2d(v.view(1, 1, 2, 3), [1, 2]),
    "_adaptive_avg_pool3d": lambda v: torch.ops.aten._adaptive_avg_pool3d(v.view(1, 1, 1, 2, 3), [1, 1, 2]),
    "diag_embed": lambda v: torch.ops.aten.diag_embed(v),
    "reflection_pad1d": lambda v: functional.pad(v.view(1, 1, 6), (2, 1), mode="reflect"),
    "reflection_pad2d": lambda v: functional.pad(v.view(1, 1, 2, 3), (1, 1, 1, 1), mode="reflect"),
    "replication_pad1d": lambda v: functional.pad(v.view(1, 1, 6), (2, 1), mode="replicate"),
    "replication_pad2d": lambda v: functional.pad(v.view(1, 1, 2, 3), (2, 1, 1, 1), mode="replicate"),
    "im2col": lambda v: functional.unfold(v.view(1, 1, 2, 3), (1, 2)),
    "pixel_shuffle": lambda v: torch.ops.aten.pixel_shuffle(v.repeat(2).view(1, 4, 1, 3), 2),
    "upsample_nearest1d": lambda v: functional.interpolate(v.view(1, 1, 6), scale_factor=2.0),
    "upsample_nearest2d": lambda v: functional.interpolate(v.view(1, 1, 2, 3), scale_factor=2.0),
    "upsample_bilinear2d": lambda v: functional.interpolate(v.view(1, 1, 2, 3), size=(3, 4), mode="bilinear"),
    "constant_pad_nd": lambda v: functional.pad(v, (1, 2), value=3.0),
}
"""Linear operations, of (6,) numbers."""

for _name, _operation in BESIDE.items():
    EXPRESSIONS[_name] = lambda p, x, f=_operation: curved(f(p["p0"] * p["p1"] * x).double())


DECOMPOSED = {
    "huber_loss": lambda p, x: curved(functional.huber_loss(p["p0"] * x, p["p1"], reduction="none", delta=0.4)),
    "smooth_l1_loss": lambda p, x: curved(functional.smooth_l1_loss(p["p0"] * x, p["p1"], reduction="none")),
    "binary_cross_entropy_with_logits": lambda p, x: functional.binary_cross_entropy_with_logits(
        p["p0"] * x, (x > 0).double()
    ),
    "binary_cross_entropy": lambda p, x: functional.binary_cross_entropy(torch.sigmoid(p["p0"] * x), (x > 0).double()),
    "mish": lambda p, x: curved(functional.mish(p["p0"] * x)),
    "hardswish": lambda p, x: curved(functional.hardswish(3 * p["p0"] * x)),
    "glu": lambda p, x: curved(functional.glu(p["p0"] * x, 0)),
    "addcmul": lambda p, x: curved(torch.addcmul(p["p0"], p["p1"], p["p0"] * x, value=2)),
    "lerp": lambda p, x: curved(torch.lerp(p["p0"], p["p1"] * x, 0.3)),
    "xlogy": lambda p, x: curved(torch.special.xlogy(positive(p["p0"]), positive(p["p1"]))),
    "kl_div": lambda p, x: functional.kl_div(torch.log_softmax(p["p0"] * x, 0), torch.softmax(x, 0), reduction="sum"),
    "std": lambda p, x: (p["p0"] * x).std(),
    "norm": lambda p, x: (p["p0"] * x).norm() + (p["p1"] * x).view(2, 3).norm(dim=1).tanh().sum(),
    "dot": lambda p, x: torch.dot(p["p0"] * x, p["p1"]).tanh(),
    "square": lambda p, x: curved(torch.square(p["p0"] * x)),
    "rms_norm": lambda p, x: curved(functional.rms_norm((p["p0"] * x).view(2, 3), (3,), p["p1"][:3])),
    "einsum": lambda p, x: curved(torch.einsum("ij,kj->ik", (p["p0"] * x).view(2, 3), p["p1"].view(2, 3))),
    "adaptive_avg_pool1d": lambda p, x: curved(functional.adaptive_avg_pool1d((p["p0"] * x).view(1, 1, 6), 2)),
    "max_pool1d": lambda p, x: curved(functional.max_pool1d((p["p0"] * x).view(1, 1, 6), 2)),
    "avg_pool1d": lambda p, x: curved(functional.avg_pool1d((p["p0"] * x).view(1, 1, 6), 2)),
    "gaussian_nll": lambda p, x: functional.gaussian_nll_loss(p["p0"] * x, x, positive(p["p1"])),
    "scaled_dot_product_attention": lambda p, x: curved(
        functional.scaled_dot_product_attention(
            *((p["p0"] * x).view(1, 1, 3, 2), p["p1"].view(1, 1, 3, 2), x.view(1, 1, 3, 2))
        )
    ),
}
"""Operations that torch writes in terms of others."""
