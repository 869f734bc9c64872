"""Parts of a model by a name of their own."""

import peft
import pytest
import torch
import transformers
from torch import nn

import curvprobe as cp
from curvprobe.risk.parameters import select_parameters
from tests import cases

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # peft asks by it

SIZES = {
    "vocab_size": 19,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
}


def llama(**options):
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, **options))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 1)


def residual():
    """As a ResNet: stages of blocks, and a head."""
    stages = [nn.Sequential(Block(), Block()) for _ in range(2)]
    return nn.Sequential(nn.Conv2d(1, 2, 1), *stages, nn.Flatten(), nn.Linear(2, 3))


def vision():
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8, image_size=4, patch_size=2
    )
    return transformers.ViTForImageClassification(config)


def test_lora():
    model = peft.get_peft_model(llama(), peft.LoraConfig(r=2, target_modules=["q_proj"]))
    names = select_parameters(model, "lora")
    assert len(names) == 6
    assert all("lora_" in name for name in names)
    model.requires_grad_(True)
    assert select_parameters(model, "lora") == names
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" not in name)
    with pytest.raises(ValueError, match="'lora', whose parameters are all frozen"):
        cp.EmpiricalRisk(model, cp.losses.causal_lm, torch.ones(2, 3, dtype=torch.long), params="lora")


LAST = {
    "llama": (llama, "model.layers.2."),
    "residual": (residual, "2.1."),
    "vision": (vision, ("vit.layers.1.", "vit.encoder.layer.1.")),  # as versions of transformers call them
    "blocks alone": (lambda: nn.Sequential(Block(), Block()), "1."),
    "experts within blocks": (
        lambda: transformers.MixtralForCausalLM(transformers.MixtralConfig(**SIZES, num_local_experts=2)),
        "model.layers.2.",
    ),
}


@pytest.mark.parametrize(("make", "prefix"), LAST.values(), ids=LAST)
def test_last_block(make, prefix):
    model = make()
    names = select_parameters(model, "last-block")
    assert names == [name for name, _ in model.named_parameters() if name.startswith(prefix)]
    assert names


def test_no_embeddings():
    assert [n for n, _ in llama().named_parameters() if n not in select_parameters(llama(), "no-embeddings")] == [
        "model.embed_tokens.weight"
    ]
    tied = select_parameters(llama(tie_word_embeddings=True), "no-embeddings")
    assert not [name for name in tied if "embed" in name or "lm_head" in name]
    model = vision()
    left = set(dict(model.named_parameters())) - set(select_parameters(model, "no-embeddings"))
    assert left == {"vit.embeddings.position_embeddings"}


def test_head():
    assert select_parameters(llama(), "head") == ["lm_head.weight"]
    assert select_parameters(residual(), "head") == ["4.weight", "4.bias"]
    assert select_parameters(vision(), "head") == ["classifier.weight", "classifier.bias"]
    with pytest.raises(ValueError, match=r"that of model\.embed_tokens too"):
        select_parameters(llama(tie_word_embeddings=True), "head")


NONE = {
    "lora": (cases.make("mlp").model, "no parameter whose name begins with lora_"),
    "last-block": (cases.make("mlp").model, "no sequence of two or more blocks"),
    "no-embeddings": (nn.Embedding(3, 2), "nothing but embeddings"),
    "head": (nn.Embedding(3, 2), "no linear or convolutional layer"),
}


@pytest.mark.parametrize("preset", NONE)
def test_a_model_without_such_a_part(preset):
    model, message = NONE[preset]
    with pytest.raises(ValueError, match=f"params is '{preset}', and the model has {message}"):
        select_parameters(model, preset)


def test_another_word_is_no_preset():
    with pytest.raises(TypeError, match=r"the string 'tail'; expected a list.*or one of 'lora', 'last-block'"):
        select_parameters(residual(), "tail")


def test_numbers_of_a_preset_are_those_of_its_names():
    case = cases.make("attention")
    by_name = case.risk(params=["head.weight"])
    assert case.risk(params="head").param_names == by_name.param_names
    assert torch.equal(case.risk(params="head").gradient(), by_name.gradient())
