"""A task as other packages and plain PyTorch want it: a model, a criterion of the mean, and one batch."""

from dataclasses import dataclass

from torch import Tensor, nn

from curvprobe.tasks import Task
from curvprobe.tasks.digits import LABEL_SMOOTHING


@dataclass(frozen=True)
class Plain:
    """The mean loss is ``criterion(model(inputs), targets)``; it is the empirical risk of the task it came from."""

    model: nn.Module
    criterion: nn.CrossEntropyLoss
    inputs: Tensor
    targets: Tensor

    def loss(self) -> Tensor:
        """The mean loss, differentiable in the model's parameters."""
        value: Tensor = self.criterion(self.model(self.inputs), self.targets)
        return value


class NextToken(nn.Module):
    """A causal language model as a classifier of tokens: logits (n (T - 1), vocabulary)."""

    def __init__(self, language_model: nn.Module) -> None:
        super().__init__()
        self.language_model = language_model

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits for all tokens but the first of every sequence."""
        logits: Tensor = self.language_model(input_ids=tokens, use_cache=False).logits
        return logits[:, :-1].flatten(0, 1)


def plain(task: Task) -> Plain:
    """The text and the digits task in that form; sequences are of one length, so the mean over tokens is the risk."""
    if isinstance(task.data, Tensor):
        return Plain(NextToken(task.model), nn.CrossEntropyLoss(), task.data, task.data[:, 1:].flatten())
    return Plain(task.model, nn.CrossEntropyLoss(label_smoothing=LABEL_SMOOTHING), *task.data)
