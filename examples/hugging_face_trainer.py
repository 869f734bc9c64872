"""A small GPT-2 in Hugging Face's Trainer, with a callback that looks at the landscape as it forms.

Run: python examples/hugging_face_trainer.py runs/trainer
"""

import sys
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

import curvprobe as cp
from curvprobe.integrations.transformers import CurvatureCallback
from curvprobe.tasks.text import help_topics

CONTEXT, VOCABULARY = 32, 512


def main(out: Path) -> None:
    """Train for sixty steps; the callback logs every twenty, on sequences of the training data and unseen ones."""
    torch.manual_seed(0)
    tokens = help_topics(VOCABULARY, CONTEXT)[:600]
    training, unseen = tokens[:500], tokens[500:]
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=CONTEXT,
        n_embd=32,
        n_layer=2,
        n_head=2,
        use_cache=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    trainer = Trainer(
        model=GPT2LMHeadModel(config),
        args=TrainingArguments(
            str(out),
            max_steps=60,
            per_device_train_batch_size=8,
            learning_rate=3e-3,
            logging_steps=20,
            report_to=[],
            dataloader_pin_memory=torch.cuda.is_available(),
        ),
        train_dataset=[{"input_ids": row, "labels": row} for row in training],
    )
    monitor = cp.Monitor(cp.losses.causal_lm, training[:16], unseen[:16], every=20, sigma=1e-3)
    trainer.add_callback(CurvatureCallback(trainer, monitor))
    trainer.train()
    trainer.save_model()
    for seen in monitor.history:
        print(
            f"step {seen['step']:.0f}: loss {seen['curvprobe/loss']:.2f}, first eigenvalue "
            f"{seen['curvprobe/eigenvalue_1']:.2f}, one more example moves the loss by {seen['curvprobe/rms']:.1e}"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
