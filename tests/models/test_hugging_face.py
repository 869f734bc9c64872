"""Models of transformers, from small configurations; padded by attention masks, tied, adapted."""

import peft
import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional

import curvprobe as cp
from tests.models.hand import ROUNDED, agrees, entries, first_product, refused, rows

SIZES = {
    "vocab_size": 19,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LENGTHS = (6, 3, 4)


def tokens() -> dict[str, Tensor]:
    """Texts of three lengths, padded."""
    mask = (torch.arange(6) < torch.tensor(LENGTHS)[:, None]).long()
    return {"input_ids": torch.randint(3, 19, (3, 6)) * mask, "attention_mask": mask}


def next_token_loss(model: nn.Module, text: Tensor) -> tuple[Tensor, int]:
    """Of a text without padding (length,)."""
    logits = model(input_ids=text[None], use_cache=False).logits[0, :-1]
    return functional.cross_entropy(logits, text[1:], reduction="sum"), len(text) - 1


def check_causal(model: nn.Module, rtol: float, dtype: torch.dtype = torch.float64) -> None:
    model, data = model.to(dtype).eval(), tokens()
    risk = cp.EmpiricalRisk(model, cp.losses.causal_lm, data)
    texts = [(row[:length],) for row, length in zip(data["input_ids"], LENGTHS, strict=True)]
    agrees(risk, model, lambda text: next_token_loss(model, text), texts, rtol)


def llama() -> nn.Module:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, num_key_value_heads=1))


# ---- decoders


def test_gpt2():
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 8, "bos_token_id": 1, "eos_token_id": 2}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=19, **sizes))
    assert model.lm_head.weight is model.transformer.wte.weight
    check_causal(model, 1e-8)


def test_llama():
    check_causal(llama(), ROUNDED)


def test_gemma():
    config = transformers.GemmaConfig(**SIZES, num_key_value_heads=1, head_dim=8)
    check_causal(transformers.GemmaForCausalLM(config), ROUNDED)


@pytest.mark.parametrize(("experts", "dtype"), [("eager", torch.float64), ("grouped_mm", torch.float32)], ids=str)
def test_mixtral(experts, dtype):
    config = transformers.MixtralConfig(**SIZES, num_key_value_heads=1, num_local_experts=3, num_experts_per_tok=1)
    config._experts_implementation = experts
    check_causal(transformers.MixtralForCausalLM(config), ROUNDED, dtype)


# ---- encoders


def bert_config() -> transformers.BertConfig:
    return transformers.BertConfig(**{**SIZES, "bos_token_id": None, "eos_token_id": None})


def test_bert():
    model, data = transformers.BertForMaskedLM(bert_config()).double().eval(), tokens()
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
    data["labels"] = data["input_ids"].masked_fill(data["attention_mask"] == 0, -100)
    data["labels"][:, 0] = -100
    data["input_ids"][:, 1] = 3
    risk = cp.EmpiricalRisk(model, cp.losses.masked_lm, data)

    def loss(text: Tensor, labels: Tensor, n: int) -> tuple[Tensor, int]:
        logits = model(input_ids=text[None, :n]).logits[0, 1:]
        return functional.cross_entropy(logits, labels[1:n], reduction="sum"), n - 1

    agrees(risk, model, loss, list(zip(data["input_ids"], data["labels"], LENGTHS, strict=True)))


def test_bert_classifier():
    model = transformers.BertForSequenceClassification(bert_config()).double().eval()
    data = {**tokens(), "labels": torch.tensor([0, 1, 1])}
    risk = cp.EmpiricalRisk(model, cp.losses.cross_entropy, data)

    def loss(text: Tensor, label: Tensor, n: int) -> Tensor:
        return functional.cross_entropy(model(input_ids=text[None, :n]).logits, label[None])

    agrees(risk, model, loss, list(zip(data["input_ids"], data["labels"], LENGTHS, strict=True)))


def test_vit():
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.ViTConfig(image_size=8, patch_size=4, num_channels=1, num_labels=3, **sizes)
    model = transformers.ViTForImageClassification(config).double().eval()
    data = {"pixel_values": torch.randn(3, 1, 8, 8, dtype=torch.float64), "labels": torch.arange(3)}
    risk = cp.EmpiricalRisk(model, cp.losses.cross_entropy, data)
    agrees(risk, model, lambda x, y: functional.cross_entropy(model(pixel_values=x).logits, y), rows(*data.values()))


# ---- encoder-decoders


def bart() -> nn.Module:
    sizes = {"d_model": 16, "vocab_size": 19, "max_position_embeddings": 12, "pad_token_id": 0, "bos_token_id": 1}
    layers = {f"{part}_{what}": n for part in ("encoder", "decoder") for what, n in (("layers", 1), ("ffn_dim", 24))}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    starts = {"eos_token_id": 2, "decoder_start_token_id": 2, "forced_eos_token_id": None}
    return transformers.BartForConditionalGeneration(transformers.BartConfig(**sizes, **layers, **heads, **starts))


def t5() -> nn.Module:
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2, "vocab_size": 19}
    config = transformers.T5Config(**sizes, decoder_start_token_id=0, pad_token_id=0, eos_token_id=2)
    return transformers.T5ForConditionalGeneration(config)


def translations() -> dict[str, Tensor]:
    counted = torch.arange(5) < torch.tensor([5, 2])[:, None]
    labels = torch.randint(3, 19, (2, 5)).masked_fill(~counted, -100)
    return {**{name: part[:2] for name, part in tokens().items()}, "labels": labels}


def own_loss(model: nn.Module, one: dict[str, Tensor]) -> tuple[Tensor, int]:
    count = int((one["labels"] != -100).sum())
    return model(**one, use_cache=False).loss * count, count


BOTH = pytest.mark.parametrize(("make", "rtol"), [(bart, 1e-8), (t5, ROUNDED)], ids=["bart", "t5"])


@BOTH
def test_encoder_decoder_by_its_own_loss(make, rtol):
    model, data = make().double().eval(), translations()
    risk = cp.EmpiricalRisk(model, cp.losses.model_loss, data, microbatch_size=1)
    agrees(risk, model, lambda one: own_loss(model, one), entries(data), rtol)


def logits_given_labels(model: nn.Module, batch) -> Tensor:
    return model(**batch, use_cache=False).logits


@BOTH
def test_encoder_decoder_by_forward(make, rtol):
    model, data = make().double().eval(), translations()
    risk = cp.EmpiricalRisk(model, cp.losses.masked_lm, data, forward=logits_given_labels)
    assert risk.microbatch_size > 1
    agrees(risk, model, lambda one: own_loss(model, one), entries(data), rtol)


def test_own_loss_of_several_examples():
    with refused("microbatch_size=1"):
        cp.EmpiricalRisk(bart().eval(), cp.losses.model_loss, translations())


# ---- adapters, labels, settings


OLDER_NAME = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # peft asks by it
LORA = {"r": 2, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False, "task_type": "CAUSAL_LM"}


@OLDER_NAME
def test_lora():
    model = peft.get_peft_model(llama(), peft.LoraConfig(**LORA))
    assert {"lora_A", "lora_B"} == {name.split(".")[-3] for name, p in model.named_parameters() if p.requires_grad}
    check_causal(model, ROUNDED)


@OLDER_NAME
def test_prefix_tuning():
    options = peft.PrefixTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    check_causal(peft.get_peft_model(llama(), options), ROUNDED)


@OLDER_NAME
def test_dora():
    model = peft.get_peft_model(llama(), peft.LoraConfig(use_dora=True, **LORA)).eval()
    with refused("replace it"):
        first_product(cp.EmpiricalRisk(model, cp.losses.causal_lm, tokens()))


def test_padding_on_the_left():
    model, mask = llama().double().eval(), (torch.arange(6) >= 6 - torch.tensor(LENGTHS)[:, None]).long()
    data = {"input_ids": torch.randint(3, 19, (3, 6)) * mask, "attention_mask": mask}
    data["position_ids"] = (mask.cumsum(1) - 1).clamp_min(0)
    texts = [(row[-length:],) for row, length in zip(data["input_ids"], LENGTHS, strict=True)]
    risk = cp.EmpiricalRisk(model, cp.losses.causal_lm, data)
    agrees(risk, model, lambda text: next_token_loss(model, text), texts, ROUNDED)


def test_labels_of_a_decoder():
    model, data = llama().double().eval(), tokens()
    data["labels"] = data["input_ids"].masked_fill(data["attention_mask"] == 0, -100)
    data["labels"][:, 1] = -100  # a prompt that does not count
    risk = cp.EmpiricalRisk(model, cp.losses.causal_lm, data)

    def loss(one: dict[str, Tensor]) -> tuple[Tensor, int]:
        count = int((one["labels"][:, 1:] != -100).sum())
        return model(**one, use_cache=False).loss * count, count

    agrees(risk, model, loss, entries(data), ROUNDED)


def test_gradient_checkpointing_of_a_model():
    model = llama().train()
    model.activation_checkpointing_enable()
    with refused("activation checkpointing"):
        first_product(cp.EmpiricalRisk(model, cp.losses.causal_lm, tokens()))
