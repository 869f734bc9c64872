"""Tasks: a trained model with its loss, its sample and candidates outside it; built in, or from a user's file.

Imports risk and the ground; the command, experiments and benchmarks may import it.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import nn
from torch.distributed import ProcessGroup

from curvprobe.errors import ArgumentError
from curvprobe.losses import Loss
from curvprobe.risk.empirical import EmpiricalRisk
from curvprobe.risk.parameters import Selection


@dataclass(frozen=True, eq=False, repr=False)
class Task:
    """What a run needs; see :class:`curvprobe.EmpiricalRisk` for the forms that each part may take.

    Attributes:
        model: trained, usually in eval mode.
        loss: per-example loss.
        data: the sample that the model was trained on, in order.
        candidates: examples it was not trained on, or None.
        params: which parameters to probe.
        microbatch_size: examples in one pass; None picks it.
        collate_fn: for a dataset.
        forward: ``forward(model, batch)`` for a model that is called another way.
        names: of the candidates, for the report's ranking.
        pictures: of the candidates, beside their names: (n, H, W) or (n, C, H, W) numbers, or a sequence of such.
        description: one line for the person who reads the run.
    """

    model: nn.Module
    loss: Loss
    data: Any
    candidates: Any = None
    params: Selection = None
    microbatch_size: int | None = None
    collate_fn: Callable[[list[Any]], Any] | None = None
    description: str = ""
    forward: Callable[[nn.Module, Any], Any] | None = None
    names: Sequence[str] | None = None
    pictures: Any = None

    def __repr__(self) -> str:
        return f"Task({type(self.model).__name__}{': ' if self.description else ''}{self.description})"

    @classmethod
    def from_transformers(
        cls,
        model: nn.Module,
        tokenizer: Any,
        texts: str | Sequence[Any],
        *,
        candidates: str | Sequence[Any] | int | None = None,
        context: int | None = None,
        params: Selection = None,
        seed: int = 0,
    ) -> Task:
        """A language model or a classifier of sequences of Hugging Face, with adapters or without, and its texts.

        A running text is cut into pieces of the whole context; of other texts each is an example, padded and masked.
        The loss is that of the model's kind, with the number of tokens asked for as weight: next tokens; 15 % hidden
        ones, the same in every pass; or labels, by the classifier's ``problem_type``. A head over a large vocabulary is
        left to the loss (:func:`curvprobe.before_head`). What was done is in the description.

        Args:
            model: of a class ``...ForCausalLM``, ``...ForMaskedLM`` or ``...ForSequenceClassification``, or a model of
                ``peft`` around one; put into eval mode.
            tokenizer: its own.
            texts: a running text; or a sequence of strings, of pairs ``(text, label)``, or of mappings with ``text``
                and ``label``. A label is a number or the name of a class.
            candidates: others like these, or how many of the last examples are held out of the sample.
            context: tokens of an example at most; None takes what the model has positions for, and at most 512.
            params: which parameters to probe.
            seed: of the hidden tokens of a masked language model.

        Raises:
            ValueError, TypeError: for a model of another kind, or texts that give no examples.

        Example:
            >>> import torch, curvprobe as cp
            >>> from tokenizers import Tokenizer, models, pre_tokenizers
            >>> from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
            >>> words = Tokenizer(models.WordLevel({"a": 0, "rose": 1, "is": 2}, unk_token="a"))
            >>> words.pre_tokenizer = pre_tokenizers.Whitespace()
            >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
            >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=3, n_positions=8, n_embd=4, n_layer=1, n_head=1))
            >>> task = cp.Task.from_transformers(model, tokenizer, ["a rose is a rose", "is a rose"], candidates=1)
            >>> task.data["attention_mask"], task.risk().total_weight
            (tensor([[1, 1, 1, 1, 1]]), 4.0)
        """
        from curvprobe.tasks.transformers import task_of_texts

        options: dict[str, Any] = {"candidates": candidates, "context": context, "params": params, "seed": seed}
        return task_of_texts(model, tokenizer, texts, **options)

    @classmethod
    def from_lightning(
        cls,
        module: nn.Module,
        datamodule: Any,
        *,
        loss: Loss | None = None,
        params: Selection = None,
        candidates: bool = True,
    ) -> Task:
        """A module of Lightning with the examples of its datamodule, its own training step as the loss.

        A training step tells one mean for its batch, so that the examples go through it one at a time; ``loss`` is
        faster, and is called as ``loss(module(x), batch)``. What the step logs goes nowhere.

        Args:
            module: trained; put into eval mode.
            datamodule: with ``train_dataloader``, whose data set is the sample in its own order, and perhaps
                ``val_dataloader`` for the candidates; or a module that has these itself.
            loss: per-example loss in the place of the training step.
            params: which parameters to probe.
            candidates: whether to take those of ``val_dataloader``.

        Raises:
            ValueError, TypeError: for a module that optimizes by hand, or data that cannot be read by position.

        Example:
            >>> import lightning, torch, curvprobe as cp
            >>> class Line(lightning.LightningModule):
            ...     def __init__(self):
            ...         super().__init__()
            ...         self.slope = torch.nn.Parameter(torch.ones(1))
            ...     def training_step(self, batch):
            ...         x, y = batch
            ...         return (self.slope * x - y).square().mean()
            ...     def train_dataloader(self):
            ...         x = torch.tensor([1.0, 2.0])
            ...         return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, 3 * x), batch_size=2)
            >>> line = Line()
            >>> cp.Task.from_lightning(line, line).risk().losses()
            tensor([ 4., 16.], dtype=torch.float64)
        """
        from curvprobe.tasks.lightning import task_of_module

        return task_of_module(module, datamodule, loss=loss, params=params, candidates=candidates)

    @classmethod
    def from_checkpoint(cls, path: str | Path, model: nn.Module, loss: Loss, data: Any, **rest: Any) -> Task:
        """A model whose trained weights are in a file.

        Safetensors, or a file of torch that holds nothing but tensors (``weights_only=True``): nothing in it is run.
        Names may have what DataParallel, torch.compile or a LightningModule put before them, and the weights may lie
        under ``state_dict`` or the like.

        Args:
            path: the file, or a folder in which safetensors are looked for first.
            model: of the architecture that was trained; gets the weights, and is put into eval mode.
            loss, data, rest: as of a Task.

        Raises:
            ValueError: if there is no such file, it holds more than tensors, or others than the model's.

        Example:
            >>> import tempfile, torch, curvprobe as cp
            >>> from safetensors.torch import save_file
            >>> trained, x = torch.nn.Linear(2, 1), torch.eye(2)
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     save_file(trained.state_dict(), folder + "/weights.safetensors")
            ...     task = cp.Task.from_checkpoint(folder, torch.nn.Linear(2, 1), cp.losses.mse, (x, x[:, :1]))
            >>> torch.equal(task.model.weight, trained.weight)
            True
        """
        from curvprobe.tasks.checkpoint import load_weights

        file = load_weights(model, path)
        rest.setdefault("description", f"{type(model).__name__} with the weights of {file.name}")
        return cls(model=model.eval(), loss=loss, data=data, **rest)

    def risk(self, memory_budget: int | None = None, group: ProcessGroup | None = None) -> EmpiricalRisk:
        """The empirical risk on the sample, for work within so many bytes, which processes may share."""
        return EmpiricalRisk(
            self.model,
            self.loss,
            self.data,
            params=self.params,
            microbatch_size=self.microbatch_size,
            collate_fn=self.collate_fn,
            memory_budget=memory_budget,
            forward=self.forward,
            group=group,
        )


def load_task(spec: str, *arguments: Any) -> Task:
    """The task that ``file.py:function`` or ``module:function`` returns, called with the arguments.

    Raises:
        ValueError: if there is no such file, module or function, or it returns something else than a Task.
    """
    task = load_function(spec)(*arguments)
    if not isinstance(task, Task):
        raise ArgumentError(f"{spec} returned a {type(task).__name__}; expected a curvprobe.Task")
    return task


def load_function(spec: str) -> Callable[..., Any]:
    """The function that ``file.py:function`` or ``module:function`` names.

    Raises:
        ValueError: if there is none.
    """
    place, colon, function = spec.rpartition(":")
    if not colon or not place or not function:
        raise ArgumentError(f"the task is {spec!r}; expected file.py:function or module:function")
    if place.endswith(".py"):
        path = Path(place)
        if not path.is_file():
            raise ArgumentError(f"the task's file {place!r} does not exist")
        name = f"curvprobe_task_{path.stem}"
        module_spec = importlib.util.spec_from_file_location(name, path)
        assert module_spec is not None
        assert module_spec.loader is not None
        module = importlib.util.module_from_spec(module_spec)
        sys.modules[name] = module  # dataclasses and pickling look a class's module up by name
        sys.path.insert(0, str(path.parent.resolve()))  # for the task's own imports, also later ones, as python does
        module_spec.loader.exec_module(module)
    else:
        sys.path.insert(0, str(Path.cwd()))
        try:
            module = importlib.import_module(place)
        except ModuleNotFoundError as error:
            if error.name is None or not (place == error.name or place.startswith(f"{error.name}.")):
                raise
            raise ArgumentError(f"the task's module {place!r} was not found; expected file.py:function too") from error
    maker = getattr(module, function, None)
    if not callable(maker):
        raise ArgumentError(f"{place} has no function {function!r}")
    return cast(Callable[..., Any], maker)
