import functools
import math
from types import SimpleNamespace

import pytest
import torch

import curvprobe as cp
from curvprobe.losses import binary_cross_entropy, causal_lm, cross_entropy, masked_lm, model_loss, mse
from tests import cases

IGNORED = -100


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tokens(*shape, vocabulary=5, seed=1):
    return torch.randint(vocabulary, shape, generator=torch.Generator().manual_seed(seed))


def naive_log_softmax(logits: list[float]) -> list[float]:
    return [z - math.log(sum(math.exp(other) for other in logits)) for z in logits]


def naive_tokens(logits, labels, shift: int) -> tuple[list[float], list[int]]:
    sums, counts = [], []
    for row, targets in zip(logits.tolist(), labels.tolist(), strict=True):
        terms = [
            -naive_log_softmax(row[t - shift])[targets[t]] for t in range(shift, len(row)) if targets[t] != IGNORED
        ]
        sums.append(sum(terms))
        counts.append(len(terms))
    return sums, counts


def close(values: torch.Tensor, expected: list[float]) -> bool:
    return torch.allclose(values, torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=0)


# ---- classifiers and regression ------------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy(smoothing):
    logits, target = 3 * draw(6, 4), tokens(6, vocabulary=4)
    loss = functools.partial(cross_entropy, label_smoothing=smoothing)
    expected = []
    for row, label in zip(logits.tolist(), target.tolist(), strict=True):
        logs = naive_log_softmax(row)
        expected.append(-(1 - smoothing) * logs[label] - smoothing * sum(logs) / len(logs))
    assert close(loss(logits, (None, target)), expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_an_ignored_label_has_no_loss(smoothing):
    logits, target = draw(6, 4), tokens(6, vocabulary=4)
    target[[1, 4]] = IGNORED
    losses = cross_entropy(logits, (None, target), label_smoothing=smoothing)
    mean = torch.nn.functional.cross_entropy(logits, target, label_smoothing=smoothing)
    assert losses.isnan().tolist() == [False, True, False, False, True, False]
    assert float(losses.nanmean()) == pytest.approx(float(mean), rel=1e-12)


def test_a_classifier_with_ignored_labels_is_refused_until_they_are_left_out():
    case = cases.make("mlp")
    x, y = case.data[0], case.data[1].clone()
    y[4] = IGNORED
    with pytest.raises(cp.NotFiniteError, match=r"the loss of example 4 of 6 is nan.*-100, must be left out"):
        cp.EmpiricalRisk(case.model, cross_entropy, (x, y)).value()
    labelled = cp.EmpiricalRisk(case.model, cross_entropy, (x[y != IGNORED], y[y != IGNORED]))
    assert labelled.value() == pytest.approx(torch.nn.functional.cross_entropy(case.model(x), y).item(), rel=1e-10)


def test_a_batch_of_ignored_labels_goes_through_vmap():
    logits, target = draw(3, 1, 4), torch.tensor([[2], [IGNORED], [0]])
    losses = torch.vmap(lambda z, y: cross_entropy(z, (None, y)))(logits, target)
    assert losses.isnan().tolist() == [[False], [True], [False]]


@pytest.mark.parametrize("kind", [torch.uint8, torch.int8, torch.int16, torch.int32])
@pytest.mark.parametrize("loss", [cross_entropy, causal_lm, masked_lm])
def test_labels_of_any_integer_type(loss, kind):
    outputs, labels = (draw(5, 4), tokens(5, vocabulary=4)) if loss is cross_entropy else (draw(2, 6, 5), tokens(2, 6))
    for given, expected in zip(loss(outputs, (None, labels.to(kind))), loss(outputs, (None, labels)), strict=True):
        assert torch.equal(given, expected)


@pytest.mark.parametrize("kind", [torch.int32, torch.int64])
def test_a_language_model_reads_tokens_of_either_type(kind):
    model = cases.make("attention").model
    data = tokens(5, 6, vocabulary=7)
    sums, counts = naive_tokens(model(data).detach(), data, 1)
    risk = cp.EmpiricalRisk(model, causal_lm, data.to(kind))
    assert risk.value() == pytest.approx(sum(sums) / sum(counts), rel=1e-10)


def test_cross_entropy_with_class_probabilities():
    logits, target = draw(5, 3), draw(5, 3, seed=2).softmax(1)
    pairs = zip(logits.tolist(), target.tolist(), strict=True)
    expected = [-sum(q * log for q, log in zip(t, naive_log_softmax(z), strict=True)) for z, t in pairs]
    assert close(cross_entropy(logits, (None, target)), expected)


def test_label_smoothing_reaches_the_risk():
    case = cases.make("mlp")
    smoothed = cp.EmpiricalRisk(case.model, functools.partial(cross_entropy, label_smoothing=0.5), case.data)
    expected = torch.nn.functional.cross_entropy(case.model(case.data[0]), case.data[1], label_smoothing=0.5)
    assert abs(smoothed.value() - case.risk().value()) > 1e-3
    assert smoothed.value() == pytest.approx(expected.item(), rel=1e-10)


@pytest.mark.parametrize("shape", [(4,), (4, 1), (4, 3)])
def test_binary_cross_entropy(shape):
    logits, target = 2 * draw(*shape), draw(*shape, seed=2).sigmoid().round()
    expected = []
    for row, labels in zip(logits.view(4, -1).tolist(), target.view(4, -1).tolist(), strict=True):
        odds = [1 / (1 + math.exp(-z)) for z in row]
        terms = [-(y * math.log(q) + (1 - y) * math.log(1 - q)) for y, q in zip(labels, odds, strict=True)]
        expected.append(sum(terms) / len(terms))
    assert close(binary_cross_entropy(logits, (None, target)), expected)
    assert close(binary_cross_entropy(logits, (None, target.long())), expected)


def test_binary_cross_entropy_fits_a_column_of_logits_to_flat_targets():
    logits, target = draw(4, 1), torch.tensor([0, 1, 1, 0])
    assert torch.equal(binary_cross_entropy(logits, (None, target)), binary_cross_entropy(logits[:, 0], (None, target)))


@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 2, 3)])
def test_mse(shape):
    prediction, target = draw(*shape), draw(*shape, seed=2)
    rows = zip(prediction.view(4, -1).tolist(), target.view(4, -1).tolist(), strict=True)
    expected = [sum((a - b) ** 2 for a, b in zip(row, other, strict=True)) / len(row) for row, other in rows]
    assert close(mse(prediction, (None, target)), expected)


def test_mse_never_broadcasts():
    prediction, target = draw(4, 1), draw(4, seed=2)
    assert torch.equal(mse(prediction, (None, target)), (prediction[:, 0] - target).square())


# ---- sequences -----------------------------------------------------------------------------------------------------


def ragged_labels():
    labels = tokens(3, 6)
    labels[0, 4:] = IGNORED
    labels[1, :3] = IGNORED
    labels[2, 2] = IGNORED
    return labels


@pytest.mark.parametrize(("loss", "shift"), [(causal_lm, 1), (masked_lm, 0)], ids=["causal", "masked"])
@pytest.mark.parametrize("form", ["pair", "labels", "targets"])
def test_token_losses_count_what_is_labelled(loss, shift, form):
    logits, labels = draw(3, 6, 5), ragged_labels()
    batch = (tokens(3, 6, seed=3), labels) if form == "pair" else {"input_ids": tokens(3, 6, seed=3), form: labels}
    if form == "targets" and loss is causal_lm:
        del batch["input_ids"]
    sums, counts = naive_tokens(logits, labels, shift)
    loss_sum, weight = loss(logits, batch)
    assert close(loss_sum, sums)
    assert weight.tolist() == counts == ([3, 3, 4] if shift else [4, 3, 5])


def test_causal_lm_predicts_its_own_input():
    logits, ids = draw(2, 5, 5), tokens(2, 5)
    sums, counts = naive_tokens(logits, ids, 1)
    for batch in (ids, {"input_ids": ids}, {"input_ids": ids, "labels": ids}, (ids, ids)):
        loss_sum, weight = causal_lm(logits, batch)
        assert close(loss_sum, sums)
        assert weight.tolist() == counts == [4, 4]


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
def test_causal_lm_leaves_padding_out(dtype):
    logits, ids = draw(3, 5, 5), tokens(3, 5)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 0, 1, 1, 1]])
    labels = ids.masked_fill(mask == 0, IGNORED)
    labels[2, 2] = IGNORED  # only padding comes before it
    sums, counts = naive_tokens(logits, labels, 1)
    loss_sum, weight = causal_lm(logits, {"input_ids": ids, "attention_mask": mask.to(dtype)})
    assert close(loss_sum, sums)
    assert weight.tolist() == counts == [4, 2, 2]


def test_padding_does_not_reach_the_loss():
    logits, ids = draw(1, 6, 5), tokens(1, 6)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0]])
    padded = causal_lm(logits, {"input_ids": ids, "attention_mask": mask})
    short = causal_lm(logits[:, :4], ids[:, :4])
    assert torch.equal(padded[0], short[0])
    assert torch.equal(padded[1], short[1])


def test_the_weights_of_a_risk_are_token_counts():
    risk = cases.make("weighted").risk()
    assert risk.weights.tolist() == [5.0, 2.0, 4.0, 1.0, 5.0]
    assert risk.total_weight == 17.0


# ---- what models return --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", [dict, SimpleNamespace], ids=["mapping", "object"])
def test_logits_are_found(wrap):
    logits, target = draw(4, 3), tokens(4, vocabulary=3)
    expected = cross_entropy(logits, (None, target))
    assert torch.equal(cross_entropy(wrap(logits=logits, hidden=None), {"labels": target}), expected)
    assert torch.equal(cross_entropy((logits, "cache"), {"targets": target}), expected)


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("wrap", [dict, SimpleNamespace], ids=["mapping", "object"])
def test_a_model_s_own_loss_of_one_example_is_weighted_by_its_labels(wrap, shifted):
    logits, labels = draw(3, 6, 5), ragged_labels()
    expected = (causal_lm if shifted else masked_lm)(logits, (None, labels))
    for row in range(3):
        one = slice(row, row + 1)
        kept, target = (logits[one, :-1], labels[one, 1:]) if shifted else (logits[one], labels[one])
        own = torch.nn.functional.cross_entropy(kept.flatten(0, 1), target.flatten())
        loss_sum, weight = model_loss(wrap(loss=own), {"labels": labels[one]}, shifted=shifted)
        assert torch.equal(weight, expected[1][one])
        assert torch.allclose(loss_sum, expected[0][one], rtol=1e-12)


def test_a_model_s_own_loss_of_a_regression_counts_each_example_once():
    loss_sum, weight = model_loss({"loss": draw(1)[0]}, {"labels": draw(1, 3)})
    assert torch.equal(loss_sum, draw(1))
    assert weight.tolist() == [1.0]


@pytest.mark.parametrize("loss", [cross_entropy, binary_cross_entropy, mse, causal_lm, masked_lm])
def test_losses_are_differentiable_twice(loss):
    outputs = draw(2, 4, 5).requires_grad_() if loss in (causal_lm, masked_lm) else draw(2, 5).requires_grad_()
    target = {cross_entropy: tokens(2), causal_lm: tokens(2, 4), masked_lm: tokens(2, 4)}.get(
        loss, draw(2, 5, seed=2).sigmoid()
    )
    value = loss(outputs, (None, target))
    total = (value[0] if isinstance(value, tuple) else value).sum()
    (slope,) = torch.autograd.grad(total, outputs, create_graph=True)
    assert torch.autograd.grad(slope.square().sum(), outputs)[0].abs().sum() > 0


LOGITS, LABELS = draw(4, 3), tokens(4, vocabulary=3)
REFUSED = {
    "no target key": (cross_entropy, LOGITS, {"x": LOGITS}, ValueError, r"keys \['x'\].*'labels'"),
    "no target": (cross_entropy, LOGITS, LOGITS, TypeError, r"without a target; expected \(inputs, targets\)"),
    "tuple of one": (cross_entropy, LOGITS, (LOGITS,), TypeError, "without a target"),
    "tagger without labels": (masked_lm, draw(2, 3, 5), {"input_ids": tokens(2, 3)}, ValueError, "'labels'"),
    "no logits": (cross_entropy, {"hidden": LOGITS}, (None, LABELS), TypeError, r"returned dict.*\.logits"),
    "odd object": (mse, SimpleNamespace(mean=1), (None, LABELS), TypeError, r"SimpleNamespace.*loss\(outputs, batch\)"),
    "mse sizes": (mse, LOGITS, (None, draw(4)), ValueError, r"shape \(4, 3\).*shape \(4,\)"),
    "bce sizes": (binary_cross_entropy, LOGITS, (None, draw(4)), ValueError, r"\(4, 3\).*\(4,\)"),
    "own loss of several": (
        model_loss,
        {"loss": draw(1)[0]},
        {"labels": tokens(2, 3)},
        ValueError,
        r"shape \(\) for 2 examples.*microbatch_size=1",
    ),
    "no own loss": (
        model_loss,
        {"logits": LOGITS},
        {"labels": LABELS},
        TypeError,
        "dict without a loss.*give it the labels",
    ),
    "real classes": (cross_entropy, LOGITS, (None, LABELS.double()), (TypeError, ValueError), "integer|Long|indices"),
}


@pytest.mark.parametrize(("loss", "outputs", "batch", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_clear_errors(loss, outputs, batch, error, message):
    with pytest.raises(error, match=message):
        loss(outputs, batch)
