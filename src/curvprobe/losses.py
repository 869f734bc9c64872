r"""Ready per-example losses: ``loss(outputs, batch)`` for the common kinds of model.

A loss takes what the model returned and the batch it was given, and returns either one mean loss per
example (n,), or a pair ``(loss_sum (n,), weight (n,))`` when examples consist of different numbers of
terms (tokens of a sequence, say). Keyword arguments are set with :func:`functools.partial`::

    loss = functools.partial(curvprobe.losses.cross_entropy, label_smoothing=0.1)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from curvprobe.errors import CannotProbeError, CannotProbeTypeError
from curvprobe.unprojected import Unprojected

__all__ = ["binary_cross_entropy", "causal_lm", "cross_entropy", "masked_lm", "model_loss", "mse"]

Loss = Callable[[Any, Any], Tensor | tuple[Tensor, Tensor]]
"""``loss(outputs, batch)``: one mean loss per example (n,), or ``(loss_sum (n,), weight (n,))``."""

IGNORE_INDEX = -100
"""Label of a position that does not count, as in PyTorch and Hugging Face."""


def _tensor(outputs: Any) -> Tensor:
    """The prediction: the outputs themselves, or their ``logits``, or the first of a tuple."""
    if isinstance(outputs, Tensor):
        return outputs
    logits = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    if isinstance(outputs, tuple | list) and outputs and isinstance(outputs[0], Tensor):
        return outputs[0]
    raise CannotProbeTypeError(
        f"the model returned {type(outputs).__name__}; expected a tensor or an object with .logits. "
        "Write a loss(outputs, batch) that picks the prediction from it."
    )


_TARGETS = ("labels", "targets", "label", "target")
"""Entries of a batch that hold the target; none of them is given to the model."""


def _target(batch: Any) -> Tensor:
    if isinstance(batch, Mapping):
        for name in _TARGETS:
            if name in batch:
                target: Tensor = batch[name]
                return target
        raise CannotProbeError(f"the batch has keys {sorted(batch)}; expected one of {list(_TARGETS)} for the target")
    if isinstance(batch, tuple | list) and len(batch) >= 2:
        second: Tensor = batch[1]
        return second
    raise CannotProbeTypeError(
        f"the batch is a {type(batch).__name__} without a target; expected (inputs, targets) or a dict"
    )


def _labels(batch: Any) -> Tensor:
    """Token labels of a sequence batch; without labels, the input tokens with padding left out."""
    if isinstance(batch, Tensor):
        return batch
    if isinstance(batch, Mapping) and "labels" not in batch and "input_ids" in batch:
        tokens: Tensor = batch["input_ids"]
        mask = batch.get("attention_mask")
        if mask is None:
            return tokens
        first = functional.pad(mask[:, :-1] == 0, (1, 0))  # nothing comes before it but padding on the left
        return tokens.masked_fill((mask == 0) | first, IGNORE_INDEX)
    return _target(batch)


def _matching(prediction: Tensor, target: Tensor) -> Tensor:
    """The target in the shape and dtype of the prediction."""
    if target.numel() != prediction.numel():
        raise CannotProbeError(
            f"the model predicts shape {tuple(prediction.shape)} and the targets have shape {tuple(target.shape)}; "
            "expected as many targets as predictions"
        )
    return target.to(prediction.dtype).reshape(prediction.shape)


def cross_entropy(outputs: Any, batch: Any, *, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of a classifier.

    Args:
        outputs: logits (n, classes), or an object with ``.logits``.
        batch: ``(inputs, targets)``, or a dict with ``labels``, ``targets``, ``label`` or ``target``: class indices
            (n,) or class probabilities (n, classes).
        label_smoothing: as in :func:`torch.nn.functional.cross_entropy`.

    Returns:
        Loss of every example (n,), in nats; NaN where the label is -100, which counts nothing: such an example has no
        term, and a risk refuses it. Leave it out of the data.

    Example:
        >>> import torch
        >>> cross_entropy(torch.zeros(3, 4), (None, torch.tensor([0, 3, -100])))
        tensor([1.3863, 1.3863,    nan])
    """
    logits, target = _tensor(outputs), _target(batch)
    if target.dim() == 1 and target.is_floating_point():
        raise CannotProbeTypeError(
            f"the targets are {target.dtype}; expected class indices of an integer type: targets.long()"
        )
    if not target.is_floating_point() and target.dim() != logits.dim() - 1:
        raise CannotProbeError(
            f"the logits have shape {tuple(logits.shape)} and the class indices {tuple(target.shape)}; expected one "
            "index for a row of logits: labels (n,), such as labels[:, 0] of labels (n, 1)"
        )
    if target.is_floating_point():
        return functional.cross_entropy(logits, target, reduction="none", label_smoothing=label_smoothing)
    target = target.long()
    loss = functional.cross_entropy(
        logits, target, ignore_index=IGNORE_INDEX, reduction="none", label_smoothing=label_smoothing
    )
    return loss.masked_fill(target == IGNORE_INDEX, torch.nan)


def binary_cross_entropy(outputs: Any, batch: Any) -> Tensor:
    """Binary cross-entropy with logits, averaged over an example's outputs; (n,), in nats.

    Args:
        outputs: logits (n,) or (n, labels).
        batch: ``(inputs, targets)`` or a dict; targets in [0, 1], of the shape of the logits.

    Example:
        >>> import torch
        >>> binary_cross_entropy(torch.zeros(2), (None, torch.tensor([0.0, 1.0])))
        tensor([0.6931, 0.6931])
    """
    logits = _tensor(outputs)
    target = _matching(logits, _target(batch))
    loss = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return loss.reshape(loss.shape[0], -1).mean(1)


def mse(outputs: Any, batch: Any) -> Tensor:
    """Squared error averaged over an example's outputs; (n,).

    Args:
        outputs: predictions (n,) or (n, ...).
        batch: ``(inputs, targets)``, or a dict with ``labels``, ``targets``, ``label`` or ``target``, of the
            predictions' size.

    Example:
        >>> import torch
        >>> mse(torch.zeros(2, 3), (None, torch.ones(2, 3)))
        tensor([1., 1.])
    """
    prediction = _tensor(outputs)
    error = (prediction - _matching(prediction, _target(batch))).square()
    return error.reshape(error.shape[0], -1).mean(1)


def _token_cross_entropy(logits: Tensor | Unprojected, labels: Tensor) -> tuple[Tensor, Tensor]:
    labels = labels.long()
    if isinstance(logits, Unprojected):
        counted = labels != IGNORE_INDEX
        losses = logits.losses(labels.clamp_min(0).flatten()).view(labels.shape) * counted
        return losses.sum(1), counted.sum(1)
    loss = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE_INDEX, reduction="none")
    return loss.view(labels.shape).sum(1), (labels != IGNORE_INDEX).sum(1)


def causal_lm(outputs: Any, batch: Any) -> tuple[Tensor, Tensor]:
    """Next-token cross-entropy of a causal language model, with the number of predicted tokens as weight.

    Args:
        outputs: logits (n, T, vocabulary), an object with ``.logits``, or what :func:`~curvprobe.before_head` returns.
        batch: token ids (n, T); or a dict with ``labels`` (n, T; -100 does not count), or with ``input_ids`` and
            perhaps ``attention_mask`` (padding on either side counts nothing, and the first token after it neither); or
            ``(inputs, labels)``. Labels are shifted here, as in Hugging Face.

    Returns:
        ``(loss_sum (n,), weight (n,))``: summed loss in nats, and target tokens.

    Example:
        >>> import torch
        >>> tokens = torch.tensor([[0, 1, 2], [0, 1, -100]])
        >>> causal_lm(torch.zeros(2, 3, 4), tokens)
        (tensor([2.7726, 1.3863]), tensor([2, 1]))
    """
    predicted = outputs.up_to(-1) if isinstance(outputs, Unprojected) else _tensor(outputs)[:, :-1]
    return _token_cross_entropy(predicted, _labels(batch)[:, 1:])


def masked_lm(outputs: Any, batch: Any) -> tuple[Tensor, Tensor]:
    """Cross-entropy at the labelled positions of a masked language model or a tagger, unshifted.

    Args:
        outputs: logits (n, T, vocabulary), an object with ``.logits``, or what :func:`~curvprobe.before_head` returns.
        batch: ``(inputs, labels)`` or a dict with ``labels`` (n, T); -100 does not count.

    Returns:
        ``(loss_sum (n,), weight (n,))``: summed loss in nats, and labelled positions.

    Example:
        >>> import torch
        >>> masked_lm(torch.zeros(1, 3, 4), (None, torch.tensor([[-100, 2, -100]])))
        (tensor([1.3863]), tensor([1]))
    """
    return _token_cross_entropy(outputs if isinstance(outputs, Unprojected) else _tensor(outputs), _target(batch))


def model_loss(outputs: Any, batch: Any, *, shifted: bool = False) -> tuple[Tensor, Tensor]:
    """Loss that the model itself computes, as Hugging Face's do when their ``forward`` takes the labels.

    Such a loss is one mean over its batch, from which those of the examples cannot be had: the risk needs
    ``microbatch_size=1``. Much faster, where they give the same, are the losses above.

    Args:
        outputs: an object or a mapping with ``loss``: scalar for a batch of one example, or one per example (n,).
        batch: ``(inputs, labels)``, or a dict with ``labels`` or ``targets``. An integer label of -100 does not count.
        shifted: whether the model predicts next tokens, so that the first label does not count.

    Returns:
        ``(loss_sum (n,), weight (n,))``: the weight is the number of labels that count, 1 for labels that are no
        integers.

    Example:
        >>> import torch
        >>> labels = torch.tensor([[1, 2, -100]])
        >>> model_loss({"loss": torch.tensor(0.5)}, {"labels": labels})
        (tensor([1.]), tensor([2]))
    """
    loss = outputs.get("loss") if isinstance(outputs, Mapping) else getattr(outputs, "loss", None)
    if not isinstance(loss, Tensor):
        raise CannotProbeTypeError(
            f"the model returned {type(outputs).__name__} without a loss; expected one with .loss: give it the labels, "
            "or use another of curvprobe.losses"
        )
    labels = _target(batch)
    rows = len(labels)
    if loss.numel() != rows:
        raise CannotProbeError(
            f"the model's own loss has shape {tuple(loss.shape)} for {rows} examples; expected one loss per example: "
            "make the risk with microbatch_size=1"
        )
    if labels.is_floating_point():
        return loss.reshape(rows), labels.new_ones(rows)
    counted = labels[:, 1:] if shifted else labels
    weight = (counted != IGNORE_INDEX).reshape(rows, -1).sum(1)
    return loss.reshape(rows) * weight, weight
