"""A small Llama that has learned to count: sequences as examples, tokens as weights.

Run: curvprobe run examples/language_model.py:task --dim 3 --out runs/counting
"""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import curvprobe as cp

VOCABULARY, LENGTH = 32, 10


def task() -> cp.Task:
    """Train on 48 of 80 sequences that count on in steps of one to three, with slips."""
    generator = torch.Generator().manual_seed(0)
    starts = torch.randint(VOCABULARY, (80, 1), generator=generator)
    strides = torch.randint(1, 4, (80, 1), generator=generator)
    tokens = (starts + strides * torch.arange(LENGTH)) % VOCABULARY
    slips = torch.rand(tokens.shape, generator=generator) < 0.1
    tokens = torch.where(slips, torch.randint(VOCABULARY, tokens.shape, generator=generator), tokens)
    tokens = tokens.unique(dim=0)  # a candidate that the sample holds too is not new
    tokens = tokens[torch.randperm(len(tokens), generator=generator)]
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=LENGTH, **sizes))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 400)
    for _ in range(400):
        optimizer.zero_grad()
        loss_sum, weight = cp.losses.causal_lm(model(tokens[:48]), tokens[:48])
        (loss_sum.sum() / weight.sum()).backward()
        optimizer.step()
        schedule.step()
    return cp.Task(model.eval(), cp.losses.causal_lm, data=tokens[:48], candidates=tokens[48:])
