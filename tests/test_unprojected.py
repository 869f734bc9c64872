"""Cross-entropy before the head, against the same from logits."""

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional

import curvprobe as cp
from curvprobe import unprojected
from curvprobe.unprojected import Unprojected

TOKENS, WIDTH, VOCABULARY = 7, 3, 5


def parts(*, bias: bool) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(TOKENS, WIDTH), (VOCABULARY, WIDTH), *([(VOCABULARY,)] if bias else [])]
    return [torch.randn(*s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes]


def plain(hidden: Tensor, weight: Tensor, bias: Tensor | None, softcap: float | None, targets: Tensor) -> Tensor:
    logits = functional.linear(hidden, weight, bias)
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    return functional.cross_entropy(logits, targets, reduction="none")


@pytest.fixture(params=[1, 2 * VOCABULARY, 1000], ids=["token by token", "two tokens at a time", "at once"])
def chunk(request, monkeypatch):
    monkeypatch.setattr(unprojected, "CHUNK", {"cpu": request.param})


@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("bias", [True, False])
def test_losses_slopes_and_second_derivatives(chunk, bias, softcap):
    given, targets = parts(bias=bias), torch.arange(TOKENS) % VOCABULARY
    weights = torch.linspace(0.5, 2, TOKENS, dtype=torch.float64)

    def chunked(*tensors: Tensor) -> Tensor:
        return Unprojected(tensors[0], tensors[1], tensors[2] if bias else None, softcap).losses(targets)

    def whole(*tensors: Tensor) -> Tensor:
        return plain(tensors[0], tensors[1], tensors[2] if bias else None, softcap, targets)

    vectors = [torch.randn_like(t) for t in given]
    found = []
    for loss in (chunked, whole):
        losses = loss(*given)
        slopes = torch.autograd.grad((weights * losses).sum().tanh(), given, create_graph=True)
        bends = torch.autograd.grad(sum((s * v).sum() for s, v in zip(slopes, vectors, strict=True)), given)
        found.append([losses, *slopes, *bends])
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=1e-12, atol=1e-13)
    assert torch.autograd.gradcheck(chunked, given)
    assert torch.autograd.gradgradcheck(chunked, given)


def test_many_tangents_and_many_examples_at_once():
    """By vmap: over the second backward pass, and over examples with a gradient inside."""
    given, targets = parts(bias=True), torch.arange(TOKENS) % VOCABULARY
    loss = Unprojected(*given).losses(targets).sum()
    slopes = torch.autograd.grad(loss, given, create_graph=True)
    vectors = [torch.randn(4, *t.shape, dtype=torch.float64) for t in given]
    batched = torch.autograd.grad(slopes, given, vectors, is_grads_batched=True, retain_graph=True)
    for i in range(4):
        single = torch.autograd.grad(slopes, given, [v[i] for v in vectors], retain_graph=True)
        assert all(torch.allclose(b[i], s, rtol=1e-12) for b, s in zip(batched, single, strict=True))

    def of_one(hidden: Tensor, weight: Tensor) -> Tensor:
        return Unprojected(hidden, weight).losses(targets[:2]).sum()

    many = torch.randn(3, 2, WIDTH, dtype=torch.float64)
    weight = given[1].detach()
    found = torch.func.vmap(torch.func.grad(of_one, argnums=1), in_dims=(0, None))(many, weight)
    for row, hidden in zip(found, many, strict=True):
        assert torch.allclose(row, torch.func.grad(of_one, argnums=1)(hidden, weight), rtol=1e-12)


def test_tokens_before_the_last():
    hidden, weight = torch.zeros(1, TOKENS, WIDTH), torch.zeros(VOCABULARY, WIDTH)
    assert Unprojected(hidden, weight).up_to(-1).hidden.shape == (1, TOKENS - 1, WIDTH)


# ---- models of Hugging Face ---------------------------------------------------------------------------------------

SIZES = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}


def models() -> dict[str, nn.Module]:
    t = transformers
    llama = {**SIZES, "vocab_size": 11, "num_key_value_heads": 1, "max_position_embeddings": 16}
    return {
        "gpt2": t.GPT2LMHeadModel(t.GPT2Config(vocab_size=11, n_positions=16, n_embd=8, n_layer=1, n_head=2)),
        "llama": t.LlamaForCausalLM(t.LlamaConfig(**llama)),
        "nanochat": t.NanoChatForCausalLM(t.NanoChatConfig(**llama)),
        "gemma2": t.Gemma2ForCausalLM(t.Gemma2Config(**llama, head_dim=4, final_logit_softcapping=2.0)),
        "bert": t.BertForMaskedLM(t.BertConfig(vocab_size=11, max_position_embeddings=16, **SIZES)),
    }


@pytest.mark.parametrize("name", ["gpt2", "llama", "nanochat", "gemma2", "bert"])
def test_a_risk_before_the_head_is_the_risk(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = models()[name].eval()
    tokens = torch.randint(3, 11, (4, 6), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(tokens)
    mask[1, 4:] = 0
    data = {"input_ids": tokens, "attention_mask": mask}
    loss = cp.losses.causal_lm
    if name == "bert":
        data, loss = {**data, "labels": tokens.masked_fill(tokens > 6, -100)}, cp.losses.masked_lm
    risk = cp.EmpiricalRisk(model, loss, data)
    before = cp.EmpiricalRisk(model, loss, data, forward=cp.before_head)
    assert torch.equal(before.weights, risk.weights)
    assert torch.allclose(before.losses(), risk.losses(), rtol=1e-5)
    vector = torch.randn(risk.num_params, generator=torch.Generator().manual_seed(1))
    products = [cp.hessian(r) @ vector for r in (before, risk)]
    assert float((products[0] - products[1]).norm() / products[1].norm()) < 1e-5
    subspace = cp.random_subspace(risk, 3)
    found, expected = cp.project(before, subspace), cp.project(risk, subspace)
    assert float((found.hessian - expected.hessian).norm() / expected.hessian.norm()) < 1e-5
    assert "forward" not in vars(model.get_output_embeddings())


def test_what_has_no_such_head_is_refused():
    with pytest.raises(cp.CannotProbeError, match=r"expected a language model of Hugging Face with a plain nn.Linear"):
        cp.before_head(nn.Linear(2, 2), torch.ones(1, 2))


@pytest.mark.parametrize("how", ["another class", "replaced"])
def test_a_head_that_is_no_plain_linear_is_refused_and_left_as_it_is(how):
    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    model = models()["gpt2"].eval()
    if how == "another class":
        model.lm_head.__class__ = Doubled
    else:
        model.lm_head.forward = own = lambda x: 2 * functional.linear(x, model.lm_head.weight)
    with pytest.raises(cp.CannotProbeError, match=r"a plain nn.Linear"):
        cp.before_head(model, torch.arange(4)[None])
    assert how == "another class" or model.lm_head.forward is own


def test_a_vocabulary_that_is_cut_behind_the_head_is_refused():
    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(9, 3), nn.Linear(3, 10)

        def get_output_embeddings(self) -> nn.Module:
            return self.head

        def forward(self, tokens: Tensor) -> dict:
            return transformers.utils.ModelOutput(logits=self.head(self.embed(tokens))[..., :9])

    with pytest.raises(cp.CannotProbeError, match=r"does something to the logits"):
        cp.before_head(Cut(), torch.arange(4)[None])


def test_a_model_that_does_more_to_its_logits_is_refused():
    class Scaled(nn.Module):
        def __init__(self, uses: int, factor: float) -> None:
            super().__init__()
            self.embed, self.head, self.uses, self.factor = nn.Embedding(5, 3), nn.Linear(3, 5), uses, factor

        def get_output_embeddings(self) -> nn.Module:
            return self.head

        def forward(self, tokens: Tensor) -> dict:
            hidden = self.embed(tokens)
            logits = sum(self.head(hidden) for _ in range(self.uses)) if self.uses else hidden
            return transformers.utils.ModelOutput(logits=logits * self.factor)

    tokens = torch.arange(4)[None]
    assert isinstance(cp.before_head(Scaled(1, 1.0), tokens), Unprojected)
    for uses, factor in ((1, 0.5), (2, 1.0), (0, 1.0)):
        with pytest.raises(cp.CannotProbeError, match=rf"applies its head {uses} times, or does something"):
            cp.before_head(Scaled(uses, factor), tokens)


def test_the_gauss_newton_matrix_needs_the_logits():
    model = models()["gpt2"].eval()
    risk = cp.EmpiricalRisk(model, cp.losses.causal_lm, torch.arange(8).view(2, 4), forward=cp.before_head)
    with pytest.raises(cp.CannotProbeError, match=r"leave out forward=before_head"):
        cp.ggn(risk) @ torch.ones(risk.num_params)
