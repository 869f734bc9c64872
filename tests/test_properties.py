"""What holds for any legitimate model, loss and sample: generated ones are held against plain double backward.

``CURVPROBE_EXAMPLES=200 pytest tests/test_properties.py`` tries so many of each, new ones every time.
"""

import contextlib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

import curvprobe as cp
from tests.cases import state_of
from tests.generated.answers import EACH, answers, assert_close, check, directions, has_ggn, keep, mean, naive_answers
from tests.generated.recipes import Recipe, recipes
from tests.generated.tasks import Task

pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing")  # torch's, of a first layer with such

MANY = int(os.environ.get("CURVPROBE_EXAMPLES", "0"))
"""Examples of every property, drawn anew; 0 takes a few, always the same."""


def generated(few: int) -> settings:
    """So many examples, or many."""
    return settings(
        max_examples=MANY or few,
        derandomize=not MANY,
        database=None,
        deadline=None,
        print_blob=False,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )


# ---- the properties


PLAIN = Recipe(1, "vector", "classes", "cross_entropy", (), 4, "dict")

MENDED: dict[str, tuple[set[str], Recipe]] = {
    "forward derivatives move a padding row, and only the first example is compared with double backward": (
        {"padding row"},
        replace(PLAIN, family="tokens"),
    ),
    "an embedding that is known by two names is taken for tied": (
        {"padding row", "alias"},
        replace(PLAIN, family="tokens"),
    ),
    "a list of weights becomes float32": ({"listed weights"}, replace(PLAIN, weighted=True)),
    "a microbatch that is evaluated again is what the model has left of it": ({"inputs in place"}, PLAIN),
    "a microbatch that is evaluated again is what the loss has left of it": ({"popping"}, PLAIN),
    "losses far below the terms that they are rounded from are refused when they meet in another batch": (
        {"near fit"},
        replace(PLAIN, task="regression", loss="mse", count=18, blocks=(("plain", "linear"), ("plain", "Tanh"))),
    ),
    "entries that are taken by ** are not seen": ({"spread", "forward"}, PLAIN),
    "the Gauss-Newton matrix gives the loss leaves as outputs": ({"outputs in place"}, PLAIN),
}


@pytest.mark.parametrize("fault", MENDED)
def test_faults_that_generated_models_have_found(fault):
    quirks, recipe = MENDED[fault]
    task = Task.make(replace(recipe, quirks=frozenset(quirks)))
    risk = task.risk()
    assert_close(answers(task, risk), naive_answers(task), task)
    assert risk.probed.doubts == {}


@generated(12)
@given(recipes())
def test_answers_are_those_of_plain_double_backward(recipe):
    def judge(task: Task) -> None:
        expected = naive_answers(task)
        assert_close(answers(task, task.risk()), expected, task)

    check(recipe, judge)


@generated(8)
@given(recipes(), st.integers(1, 6))
def test_answers_do_not_depend_on_the_microbatch(recipe, size):
    def judge(task: Task) -> None:
        risk, other = task.risk(microbatch_size=size), task.risk()
        assert_close(answers(task, risk), answers(task, other), task)
        assert task.near_fit or risk.key() == other.key()

    check(recipe, judge)


@generated(5)
@given(recipes(), st.integers(0, 3))
def test_the_least_memory_that_is_asked_for_is_enough(recipe, more):
    def judge(task: Task) -> None:
        with pytest.raises(cp.ArgumentError, match="needs at least") as refused:
            task.risk(memory_budget=1)
        least = int(re.search(r"at least (\d+)", str(refused.value)).group(1))
        assert_close(answers(task, task.risk(memory_budget=least * 2**more)), answers(task, task.risk()), task)

    check(recipe, judge)


AROUND = {
    "nothing": contextlib.nullcontext,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
}
"""In what a user may call the package."""


@generated(8)
@given(recipes(), st.sampled_from(list(AROUND)), st.sampled_from([None, 2]))
def test_answers_are_of_the_weights_and_modes_that_the_model_had(recipe, around, size):
    def judge(task: Task) -> None:
        expected, before = naive_answers(task), snapshot(task.model)
        with AROUND[around]():
            risk = task.risk(microbatch_size=size)
        change(task.model)
        changed = state_of(task.model)
        with AROUND[around]():
            found = answers(task, risk)
        assert state_of(task.model) == changed
        put_back(task.model, before)
        assert_close(found, expected, task)

    check(recipe, judge)


def snapshot(model: torch.nn.Module) -> Any:
    tensors = [(t, t.detach().clone()) for t in [*model.parameters(), *model.buffers()]]
    return tensors, [(module, module.training) for module in model.modules()]


def change(model: torch.nn.Module) -> None:
    """Other weights, buffers and modes."""
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.data = tensor + torch.ones_like(tensor)
    for module in model.modules():
        module.training = not module.training


def put_back(model: torch.nn.Module, before: Any) -> None:
    for tensor, value in before[0]:
        tensor.data = value
    for module, mode in before[1]:
        module.training = mode


@generated(7)
@given(recipes(), st.randoms(use_true_random=False), st.sampled_from([None, 1, 2, 3]))
def test_answers_do_not_depend_on_the_order(recipe, random, size):
    def judge(task: Task) -> None:
        order = random.sample(range(recipe.count), recipe.count)
        risk, other = task.risk(microbatch_size=size), task.risk(order, microbatch_size=size)
        expected = answers(task, risk)
        for name in EACH:
            expected[name] = expected[name][order]
        assert_close(answers(task, other), expected, task)
        assert other.digests() == tuple(risk.digests()[row] for row in order)

    check(recipe, judge)


@generated(7)
@given(recipes(), st.data(), st.sampled_from([None, 1, 2, 3]))
def test_answers_do_not_depend_on_the_rest_of_the_sample(recipe, data, size):
    rows = data.draw(st.lists(st.integers(0, recipe.count - 1), min_size=1, max_size=6))

    def judge(task: Task) -> None:
        expected = naive_answers(task, rows)
        risk = task.risk(microbatch_size=size)
        assert_close(answers(task, risk[rows]), expected, task)
        assert_close(answers(task, risk.on(task.data(rows), task.collate)), expected, task)
        cp.hessian(risk) @ risk.gradient()
        assert_close(answers(task, risk[rows]), expected, task)

    check(recipe, judge)


@generated(15)
@given(recipes(), st.sampled_from([1e-6, 1e-2, 0.5]), st.sampled_from([None, 1, 2, 3]))
def test_displaced_answers_are_those_of_a_model_with_other_parameters(recipe, step, size):
    def judge(task: Task) -> None:
        displacement = step * directions(task)[1][:, -1]
        naive = task.at(displacement)
        losses, weights = naive.losses(task.items)
        gradients = torch.stack([naive.derivatives(item, displacement[:, None])[0] for item in task.items])
        keep(bool(losses.isfinite().all() and gradients.isfinite().all()))
        risk = task.risk(microbatch_size=size)
        found = {
            "losses": risk.losses(displacement),
            "gradient": risk.gradient(displacement),
            "value": torch.tensor(risk.value(displacement), dtype=torch.float64),
        }
        expected = {"losses": losses, "gradient": mean(gradients, weights), "value": mean(losses, weights)}
        assert_close(found, expected, task)

    check(recipe, judge)


def naive_increment(task: Task, rows: Sequence[int], joined: Sequence[int], displacement: Tensor | None) -> float:
    """Of the risk when examples join, as the difference of two means."""
    losses, weights = task.at(displacement).losses(task.items)
    both = [*rows, *joined]
    keep(bool(losses.isfinite().all()))
    return float(mean(losses[both], weights[both]) - mean(losses[rows], weights[rows]))


def increment_rounding(task: Task) -> float:
    """What rounding leaves of a difference of two means."""
    losses, _ = task.at().losses(task.items)
    return 1e-14 * max(float(losses.abs().max()), task.unit * (1e6 if task.near_fit else 1.0))


@generated(12)
@given(recipes(), st.data(), st.sampled_from(["subspace", "isotropic", "normalized"]), st.integers(2, 5))
def test_monte_carlo_evaluates_the_true_loss_at_its_draws(recipe, data, kind, count):
    size = data.draw(st.sampled_from([None, 1, 2]))
    split = data.draw(st.integers(1, recipe.count - 1))

    def judge(task: Task) -> None:
        rows, joined = list(range(split)), list(range(split, recipe.count))
        risk, law = task.risk(rows, microbatch_size=size), cp.SubspaceProbe(directions(task)[0], sigma=0.1)
        law = {"subspace": law, "isotropic": cp.IsotropicProbe(0.1), "normalized": cp.NormalizedProbe(0.1)}[kind]
        new = risk.on(task.data(joined), task.collate)
        draws = [displacement.clone() for displacement in law.displacements(risk, count, 7)]
        true = [naive_increment(task, rows, joined, displacement) for displacement in draws]
        estimate = cp.direct_monte_carlo(risk, new, law, num_probes=count, seed=7)
        found, expected = estimate.value**0.5, (sum(x**2 for x in true) / count) ** 0.5
        assert abs(found - expected) <= 1e-8 * expected + 100 * increment_rounding(task)

    check(recipe, judge)


@generated(8)
@given(recipes(), st.data(), st.sampled_from([None, 1, 2]))
def test_increments_are_differences_of_risks(recipe, data, size):
    split = data.draw(st.integers(1, recipe.count - 1))

    def judge(task: Task) -> None:
        rows, joined = list(range(split)), list(range(split, recipe.count))
        subspace, _ = directions(task)
        risk = task.risk(rows, microbatch_size=size)
        new = risk.on(task.data(joined), task.collate)
        found = cp.increment(cp.project(risk, subspace), cp.project(new, subspace))
        before, after = naive_answers(task, rows), naive_answers(task, [*rows, *joined])
        U = subspace.basis
        for name, value, project in (
            ("value", found.level, lambda x: x),
            ("gradient", found.slope, lambda x: U.T @ x),
            ("Hessian products", found.curvature, lambda x: U.T @ x[:, : U.shape[1]]),
        ):
            expected, size_of = project(after[name] - before[name]), float(before[name].abs().max())
            allowed = 1e-8 * float(expected.abs().max()) + 1e-13 * max(size_of, task.unit_of(name))
            assert float((value - expected).abs().max()) <= allowed, name
        assert abs(cp.delta1(risk, new).value - abs(float(found.level))) <= increment_rounding(task)

    check(recipe, judge)


@dataclass
class Breaking:
    """A loss that stops working."""

    loss: Callable
    left: int

    def __call__(self, outputs: Any, batch: Any) -> Any:
        self.left -= 1
        if self.left < 0:
            raise ZeroDivisionError
        return self.loss(outputs, batch)


@generated(8)
@given(recipes(), st.integers(0, 60))
def test_a_model_is_left_as_it_was_whatever_is_asked(recipe, at):
    def judge(task: Task) -> None:
        risk = task.risk()
        subspace, _ = directions(task)
        law = cp.SubspaceProbe(subspace, sigma=0.01)
        cp.controlled_monte_carlo(risk, risk[:1], law, num_probes=4)
        cp.gradient_norms(risk)
        risk.key()
        if not has_ggn(recipe):
            with pytest.raises(cp.CannotProbeError):
                cp.ggn(risk) @ risk.gradient()
        before = state_of(task.model)
        broken = Breaking(task.loss, at)
        with contextlib.suppress(cp.CurvprobeError, ZeroDivisionError):
            found = cp.EmpiricalRisk(
                task.model, broken, task.data(), task.params, collate_fn=task.collate, forward=task.forward
            )
            answers(task, found)
        assert state_of(task.model) == before

    check(recipe, judge)
