"""Low-rank adapters on a frozen language model: train them, save both, and analyse what the adapters' folder holds.

Run: python examples/lora.py runs/lora

The same from the shell, on the folders that it leaves:
curvprobe run --hf runs/lora/adapter --text runs/lora/training.jsonl --candidates runs/lora/unseen.jsonl \\
    --params lora --dim 3 --out runs/lora/analysis
"""

import json
import sys
from pathlib import Path
from pydoc_data.topics import topics

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import ByteLevelBPETokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import curvprobe as cp
from curvprobe.tasks.folders import load_folder

VOCABULARY, CONTEXT = 512, 32


def main(out: Path) -> None:
    """A base trained on some of Python's help topics, adapters on passages of others, and the landscape in these."""
    torch.manual_seed(0)
    names = sorted(topics)
    tokenizer = _tokenizer([topics[name] for name in names])
    base = _base(tokenizer, "\n".join(topics[name] for name in names[:30]))
    base.to(torch.bfloat16).save_pretrained(out / "base")
    tokenizer.save_pretrained(out / "base")

    passages = [text for name in names[30:] for text in topics[name].split("\n\n") if len(text) > 80][:60]
    training, unseen = passages[:40], passages[40:]
    for name, texts in (("training", training), ("unseen", unseen)):
        (out / f"{name}.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=True))
    model.print_trainable_parameters()
    _train(model, cp.Task.from_transformers(model, tokenizer, training).data)
    model.peft_config["default"].base_model_name_or_path = str(out / "base")
    model.save_pretrained(out / "adapter")

    task = cp.Task.from_transformers(*load_folder(out / "adapter"), training, candidates=unseen, params="lora")
    risk = task.risk()
    print(task.description)
    print(cp.analyze(risk, risk.on(task.candidates), dim=3, stages="quick"))


def _tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    encoding = ByteLevelBPETokenizer()
    encoding.train_from_iterator(texts, vocab_size=VOCABULARY, special_tokens=["<pad>"], show_progress=False)
    return PreTrainedTokenizerFast(tokenizer_object=encoding._tokenizer, pad_token="<pad>")


def _base(tokenizer: PreTrainedTokenizerFast, text: str) -> LlamaForCausalLM:
    """A small Llama that has read a text for a moment."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        max_position_embeddings=CONTEXT,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = LlamaForCausalLM(config)
    _train(model, cp.Task.from_transformers(model, tokenizer, text).data, rate=3e-3)
    return model


def _train(model: torch.nn.Module, data: dict[str, torch.Tensor], steps: int = 120, rate: float = 1e-2) -> None:
    """Adam, on sixteen examples at a time."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.float()
    for _ in range(steps):
        rows = torch.randint(len(data["input_ids"]), (16,))
        batch = {name: tensor[rows] for name, tensor in data.items()}
        loss_sum, weight = cp.losses.causal_lm(model(**batch), batch)
        optimizer.zero_grad()
        (loss_sum.sum() / weight.sum()).backward()
        optimizer.step()
        schedule.step()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
