"""Models of transformers with their tokenizers and texts as tasks."""

import copy
import json

import peft
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.nn import functional

import curvprobe as cp
from curvprobe.tasks.folders import load_folder, read_texts

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # peft asks by it

TEXTS = ["a rose is a rose", "a name is not a rose", "by any other name", "as sweet as any rose is"]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys(" ".join(TEXTS).split())]
SIZES = {
    "vocab_size": len(WORDS),
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 12,
    "pad_token_id": 0,
}


def tokenizer(*, bert=False):
    words = Tokenizer(models.WordLevel({word: at for at, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    if bert:
        words.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    named = {"unk_token": "[UNK]", "mask_token": "[MASK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", **named)


def llama(**options):
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, **options))


def bert(kind="ForMaskedLM", **options):
    torch.manual_seed(0)
    config = transformers.BertConfig(**SIZES, hidden_dropout_prob=0.1, **options)
    return getattr(transformers, "Bert" + kind)(config)


def encode(text):
    return torch.tensor([[WORDS.index(word) for word in text.split()]])


# ---- causal models


def test_each_text_is_an_example():
    model = llama()
    task = cp.Task.from_transformers(model, tokenizer(), TEXTS, candidates=["a name"])
    expected = []
    for text in TEXTS:
        tokens = encode(text)
        logits = model(tokens, use_cache=False).logits[0, :-1].detach()
        expected.append(float(functional.cross_entropy(logits, tokens[0, 1:])))
    risk = task.risk()
    assert not model.training
    assert risk.losses().tolist() == pytest.approx(expected, rel=1e-5)
    assert risk.weights.tolist() == [4, 5, 3, 5]
    assert task.names == ["a name"]
    assert task.description == (
        "LlamaForCausalLM of 4,912 parameters, sdpa attention; 4 texts of 4 to 6 tokens: 4 in the sample, 1 candidates"
    )


def test_a_long_text_is_cut_and_said():
    task = cp.Task.from_transformers(llama(), tokenizer(), TEXTS, context=4)
    assert task.data["input_ids"].shape == (4, 4)
    assert "4 texts of 4 to 4 tokens, 3 of them cut: 4 in the sample, no candidates" in task.description


def test_a_running_text_is_cut_into_pieces():
    text = " ".join(TEXTS)  # 21 words
    task = cp.Task.from_transformers(llama(), tokenizer(), text, context=4, candidates=2)
    pieces = torch.cat([task.data["input_ids"], task.candidates["input_ids"]])
    assert torch.equal(pieces, encode(text)[0, :20].view(5, 4))
    assert len(task.candidates["input_ids"]) == len(task.names) == 2
    assert "5 pieces of 4 tokens, the last 1 left out: 3 in the sample, 2 candidates" in task.description
    assert cp.Task.from_transformers(llama(), tokenizer(), text).data["input_ids"].shape == (1, 12)  # all positions


def test_a_large_vocabulary_leaves_the_head_to_the_loss(monkeypatch):
    monkeypatch.setattr("curvprobe.tasks.transformers.LARGE_VOCABULARY", 10)
    lean = cp.Task.from_transformers(llama(), tokenizer(), TEXTS)
    monkeypatch.undo()
    plain = cp.Task.from_transformers(llama(), tokenizer(), TEXTS)
    assert lean.forward is cp.before_head
    assert plain.forward is None
    assert torch.allclose(lean.risk().losses(), plain.risk().losses(), rtol=1e-6)
    monkeypatch.setattr("curvprobe.tasks.transformers.LARGE_VOCABULARY", 10)
    assert cp.Task.from_transformers(bert(), tokenizer(bert=True), TEXTS).risk().value() > 0


def test_adapters_on_a_low_base():
    model = peft.get_peft_model(llama().bfloat16(), peft.LoraConfig(r=2, target_modules=["q_proj"]))
    task = cp.Task.from_transformers(model, tokenizer(), TEXTS, candidates=1, params="lora")
    risk = task.risk()
    assert risk.num_params == 2 * 2 * 2 * 16
    assert {tensor.dtype for tensor in risk.probed.state.kept.values()} == {torch.bfloat16}
    assert "128 probed (lora)" in task.description


# ---- masked models and classifiers


def test_hidden_tokens_are_the_same_every_time():
    first, again = (cp.Task.from_transformers(bert(), tokenizer(bert=True), TEXTS) for _ in range(2))
    other = cp.Task.from_transformers(bert(), tokenizer(bert=True), TEXTS, seed=1)
    asked = first.data["labels"] != -100
    assert torch.equal(first.data["input_ids"], again.data["input_ids"])
    assert not torch.equal(asked, other.data["labels"] != -100)
    assert asked.sum(1).tolist() == [1, 1, 1, 1]  # 15 % of five is one
    whole = torch.where(asked, first.data["labels"], first.data["input_ids"])
    for row, text in zip(whole.tolist(), TEXTS, strict=True):
        words = encode(text)[0].tolist()
        assert row[: len(words) + 2] == [2, *words, 3]
        assert set(row[len(words) + 2 :]) <= {0}
    model = first.model
    loss = model(**{name: tensor[:1] for name, tensor in first.data.items()}).loss
    assert float(first.risk().losses()[0]) == pytest.approx(loss.item(), rel=1e-5)


def test_shares_of_hidden_tokens():
    text = " ".join(TEXTS * 2000)
    data = cp.Task.from_transformers(bert(), tokenizer(bert=True), text).data
    asked = data["labels"] != -100
    assert data["input_ids"].shape[1] == 12
    assert bool((data["input_ids"][:, 0] == 2).all())
    assert bool((data["input_ids"][:, -1] == 3).all())
    assert bool((asked.sum(1) == 2).all())  # of ten
    masked = (data["input_ids"] == 4)[asked].double().mean()
    left = (data["input_ids"] == data["labels"])[asked].double().mean()
    assert abs(float(masked) - 0.8) < 0.02 + 0.1 / len(WORDS)  # another token may be the mask
    assert abs(float(left) - 0.1) < 0.02 + 0.1 / len(WORDS)


ANSWERS = {
    "classes": ({"num_labels": 3}, [0, 2, 1, 2], cp.losses.cross_entropy),
    "names": ({"label2id": {"no": 0, "yes": 1}, "id2label": {0: "no", 1: "yes"}}, ["no", "yes", "no", "no"], None),
    "numbers": ({"num_labels": 1}, [0.5, -1.0, 2.0, 0.0], cp.losses.mse),
    "several": (
        {"num_labels": 2, "problem_type": "multi_label_classification"},
        [[1, 0], [1, 1], [0, 0], [0, 1]],
        cp.losses.binary_cross_entropy,
    ),
}


@pytest.mark.parametrize(("options", "labels", "loss"), ANSWERS.values(), ids=ANSWERS)
def test_classifiers(options, labels, loss):
    model = bert("ForSequenceClassification", **options).eval()
    pairs = list(zip(TEXTS, labels, strict=True))
    rows = [{"text": text, "label": label} for text, label in pairs]
    task, same = (cp.Task.from_transformers(model, tokenizer(bert=True), texts) for texts in (pairs, rows))
    assert loss is None or task.loss is loss
    assert torch.equal(task.data["labels"], same.data["labels"])
    expected = [
        copy.deepcopy(model)(**{name: tensor[at : at + 1] for name, tensor in task.data.items()}).loss.item()
        for at in range(4)
    ]
    assert task.risk().losses().tolist() == pytest.approx(expected, rel=1e-5)


def gpt2_classifier(**options):
    torch.manual_seed(0)
    sizes = {"n_positions": 12, "n_embd": 16, "n_layer": 1, "n_head": 2, "bos_token_id": 1, "eos_token_id": 1}
    return transformers.GPT2ForSequenceClassification(
        transformers.GPT2Config(vocab_size=len(WORDS), **sizes, **options)
    )


@pytest.mark.parametrize("padding", [0, 1])
def test_texts_are_padded_by_the_models_own_token(padding):
    """By which such a classifier finds where a text ends: the tokenizer's, 0, would be taken for text."""
    model = gpt2_classifier(pad_token_id=padding).eval()
    risk = cp.Task.from_transformers(model, tokenizer(), [(text, at % 2) for at, text in enumerate(TEXTS)]).risk()
    expected = [
        functional.cross_entropy(model(encode(text)).logits, torch.tensor([at % 2])).item()
        for at, text in enumerate(TEXTS)
    ]
    assert risk.losses().tolist() == pytest.approx(expected, rel=1e-5)


class Mean(transformers.BertForSequenceClassification):
    """Takes the mean over all positions, padding included."""

    def forward(self, input_ids, attention_mask=None):
        return self.classifier(self.bert.embeddings(input_ids).mean(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_model_that_takes_padding_for_text_is_refused_and_left_as_it_was(dtype):
    torch.manual_seed(0)
    model = Mean(transformers.BertConfig(**SIZES)).train()
    model.classifier.weight.data *= 100
    model.to(dtype)
    with pytest.raises(ValueError, match=r"the loss of text 2 is .* by itself and .* with padding behind it"):
        cp.Task.from_transformers(model, tokenizer(), [(text, at % 2) for at, text in enumerate(TEXTS)])
    assert all(part.training for part in model.modules())
    same = [(text, at % 2) for at, text in enumerate(["a rose", "any name"])]
    assert not cp.Task.from_transformers(model, tokenizer(), same).model.training


def test_positions_that_are_counted_from_a_padding_index():
    torch.manual_seed(0)
    model = transformers.RobertaForMaskedLM(transformers.RobertaConfig(**SIZES))
    task = cp.Task.from_transformers(model, tokenizer(bert=True), " ".join(TEXTS))
    assert task.data["input_ids"].shape[1] == 11  # of 12 positions the first is the padding's
    assert task.risk().value() > 0
    short = tokenizer()
    short.model_max_length = 5
    assert cp.Task.from_transformers(llama(), short, " ".join(TEXTS)).data["input_ids"].shape[1] == 5


REFUSED = {
    "no padding": (
        lambda: (gpt2_classifier(), tokenizer(), [(text, 0) for text in TEXTS]),
        {},
        r"several lengths and the model no padding token; set model\.config\.pad_token_id",
    ),
    "the wrong way round": (lambda: (tokenizer(), llama(), TEXTS), {}, "expected one of transformers, and then its"),
    "classes": (
        lambda: (bert("ForSequenceClassification"), tokenizer(), [("a rose", 7)]),
        {},
        "the label 7 is none of the model's, 0 to 1",
    ),
    "another kind": (lambda: (bert("Model"), tokenizer(), TEXTS), {}, "is a BertModel; expected a causal or masked"),
    "two halves": (
        lambda: (
            transformers.T5ForConditionalGeneration(
                transformers.T5Config(vocab_size=9, d_model=8, d_ff=8, num_layers=1, num_heads=1, d_kv=8)
            ),
            tokenizer(),
            TEXTS,
        ),
        {},
        "is a T5ForConditionalGeneration; expected",
    ),
    "one token": (lambda: (llama(), tokenizer(), ["a rose", "a"]), {}, "text 1 has 1 tokens; expected 2 or more"),
    "no texts": (lambda: (llama(), tokenizer(), []), {}, "there are no texts"),
    "no text": (lambda: (llama(), tokenizer(), [{"prompt": "a"}]), {}, "example 0 is .*; expected text, as a pair"),
    "short text": (lambda: (llama(), tokenizer(), "a rose"), {}, "the text has 2 tokens and one example 12"),
    "too long": (lambda: (llama(), tokenizer(), TEXTS), {"context": 13}, "context is 13; expected 2 to 12 tokens"),
    "too many": (lambda: (llama(), tokenizer(), TEXTS), {"candidates": 4}, "candidates is 4; the texts make 4"),
    "no labels": (
        lambda: (bert("ForSequenceClassification"), tokenizer(), TEXTS),
        {},
        "expected text and label, as a pair",
    ),
    "running": (lambda: (bert("ForSequenceClassification"), tokenizer(), "a"), {}, "expected texts with labels"),
    "label": (
        lambda: (bert("ForSequenceClassification"), tokenizer(), [("a rose", "maybe")]),
        {},
        "the label 'maybe' is none of the model's: LABEL_0, LABEL_1",
    ),
}


@pytest.mark.parametrize(("parts", "options", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(parts, options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        cp.Task.from_transformers(*parts(), **options).risk()


# ---- folders and files


@pytest.fixture
def folder(tmp_path):
    llama().bfloat16().save_pretrained(tmp_path / "base")
    tokenizer().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def test_a_folder_of_transformers(folder):
    model, words = load_folder(folder)
    assert isinstance(model, transformers.LlamaForCausalLM)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert words("a rose")["input_ids"] == [5, 6]


def test_a_folder_of_an_adapter(folder, tmp_path):
    model = peft.get_peft_model(llama(), peft.LoraConfig(r=2, target_modules=["q_proj"]))
    torch.nn.init.ones_(model.base_model.model.model.layers[0].self_attn.q_proj.lora_B["default"].weight)
    model.save_pretrained(tmp_path / "adapter")
    config = tmp_path / "adapter" / "adapter_config.json"
    with pytest.raises(ValueError, match=r"names the base .*, which is no folder here; write the base's folder"):
        load_folder(tmp_path / "adapter")
    config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": "../base"}))
    found, words = load_folder(tmp_path / "adapter")
    task = cp.Task.from_transformers(found, words, TEXTS, params="lora")
    assert task.risk().num_params == 128
    assert bool((found.base_model.model.model.layers[0].self_attn.q_proj.lora_B["default"].weight == 1).all())


WRONG = {
    "empty": ({}, r"has no config\.json; expected a folder that save_pretrained\(\) wrote"),
    "unknown": ({"config.json": '{"model_type": "llama", "architectures": ["Mine"]}'}, "the architecture 'Mine'"),
    "no model": ({"config.json": '{"model_type": "llama", "architectures": ["pipeline"]}'}, "architecture 'pipeline'"),
}


@pytest.mark.parametrize(("files", "message"), WRONG.values(), ids=WRONG)
def test_wrong_folders(tmp_path, files, message):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        load_folder(tmp_path)


def test_a_folder_without_a_tokenizer(folder):
    for file in folder.glob("*token*"):
        file.unlink()
    with pytest.raises(ValueError, match=r"has no tokenizer; write it there: tokenizer\.save_pretrained"):
        load_folder(folder)


def test_texts_of_files(tmp_path):
    (tmp_path / "a.txt").write_text("a rose\n\nis")
    assert read_texts(tmp_path / "a.txt") == "a rose\n\nis"
    (tmp_path / "a.jsonl").write_text('{"text": "a rose", "label": 1}\n\n{"text": "is"}\n')
    assert read_texts(tmp_path / "a.jsonl") == [{"text": "a rose", "label": 1}, {"text": "is"}]


@pytest.mark.parametrize(
    ("line", "message"), [("{", "line 1 of .* is no JSON"), ('{"prompt": "a"}', "expected a mapping with a text")]
)
def test_wrong_files(tmp_path, line, message):
    (tmp_path / "a.jsonl").write_text(line)
    with pytest.raises(ValueError, match=message):
        read_texts(tmp_path / "a.jsonl")
    with pytest.raises(ValueError, match="does not exist"):
        read_texts(tmp_path / "b.jsonl")
