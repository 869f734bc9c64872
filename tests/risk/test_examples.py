from collections import namedtuple

import numpy
import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

import curvprobe as cp
from curvprobe.risk.examples import Examples, to_model
from curvprobe.runtime.digest import digest, overlap
from tests import cases

X = torch.arange(15, dtype=torch.float64).view(5, 3)
Y = torch.arange(5)
Pair = namedtuple("Pair", ["inputs", "targets"])


class Squares(Dataset):
    """A map-style dataset that makes each item afresh."""

    def __len__(self):
        return 5

    def __getitem__(self, row):
        return X[row].clone(), int(Y[row])


TUPLES = {
    "tuple": (X, Y),
    "namedtuple": Pair(X, Y),
    "tensor dataset": TensorDataset(X, Y),
    "list": [(X[i], Y[i]) for i in range(5)],
    "subset": Subset(TensorDataset(X.flip(0), Y.flip(0)), [4, 3, 2, 1, 0]),
    "dataset": Squares(),
    "arrays": [(X[i].numpy(), numpy.int64(i)) for i in range(5)],
}
DICTS = {
    "dict": {"x": X, "y": Y},
    "list of dicts": [{"x": X[i], "y": Y[i]} for i in range(5)],
}


@pytest.mark.parametrize("data", TUPLES.values(), ids=TUPLES)
def test_pairs_are_read_in_order(data):
    examples = Examples(data)
    inputs, targets = examples.batch(1, 3)
    assert len(examples) == 5
    assert torch.equal(inputs, X[1:3])
    assert torch.equal(targets, Y[1:3])


@pytest.mark.parametrize("data", DICTS.values(), ids=DICTS)
def test_dicts_are_read_in_order(data):
    batch = Examples(data).batch(3, 5)
    assert set(batch) == {"x", "y"}
    assert torch.equal(batch["x"], X[3:])
    assert torch.equal(batch["y"], Y[3:])


def test_one_tensor_is_its_own_batch():
    assert torch.equal(Examples(X).batch(0, 2), X[:2])
    assert Examples(X).batch(4, 5).shape == (1, 3)


def test_named_tuples_stay_named():
    assert Examples(Pair(X, Y)).batch(0, 2).targets.tolist() == [0, 1]


@pytest.mark.parametrize("data", TUPLES.values(), ids=TUPLES)
def test_selections_keep_their_order_and_compose(data):
    chosen = Examples(data).select([4, 0, 2])
    assert len(chosen) == 3
    assert chosen.batch(0, 3)[1].tolist() == [4, 0, 2]
    again = chosen.select([2, 2, 0])
    assert torch.equal(again.batch(0, 3)[0], X[[2, 2, 4]])
    assert again.digests() == tuple(Examples(data).digests()[i] for i in (2, 2, 4))


def test_collate_fn_makes_the_batch():
    def pad(items):
        return torch.nn.utils.rnn.pad_sequence(items, batch_first=True, padding_value=-1.0)

    ragged = [torch.ones(length) for length in (3, 1, 2)]
    assert Examples(ragged, pad).batch(1, 3).tolist() == [[1, -1], [1, 1]]
    with pytest.raises(ValueError, match=r"could not be collated.*collate_fn"):
        Examples(ragged).batch(0, 2)
    assert Examples(ragged).batch(0, 1).shape == (1, 3)


def test_collate_fn_with_tensors_is_refused():
    with pytest.raises(ValueError, match="collate_fn came with tensors"):
        Examples((X, Y), collate_fn=list)


# ---- content hashes ------------------------------------------------------------------------------------------------


def test_examples_are_recognised_across_containers():
    assert Examples((X, Y)).digests() == Examples(TensorDataset(X, Y)).digests()
    assert Examples({"x": X, "y": Y}).digests() == Examples(DICTS["list of dicts"]).digests()
    assert len(set(Examples(X).digests())) == 5


IN_MEMORY = {
    "one tensor": X,
    "two": (X, Y),
    "named": {"b": X, "a": Y.int()},
    "not contiguous": (X.repeat(2, 2).T,),
    "no entries": (X[:, :0],),
    "scalars": (Y > 2,),
    "complex": (X.to(torch.complex64),),
    "half": (X.bfloat16(), Y),
}


@pytest.mark.parametrize("data", IN_MEMORY.values(), ids=IN_MEMORY)
def test_tensors_are_hashed_together_to_what_their_rows_are_hashed_to_alone(data):
    rows = range(len(Examples(data)))
    expected = tuple(digest(pytree.tree_map(lambda t, i=i: t[i], data), exact=False) for i in rows)
    assert Examples(data).digests() == expected


def test_rows_are_hashed_alike_in_every_chunk():
    """Tensors are hashed a thousand rows or so at a time."""
    x, y = torch.arange(5000.0).view(2500, 2), torch.arange(2500)
    order = [*range(2499, -1, -1), 3, 3]
    alone = [digest((x[i], y[i]), exact=False) for i in range(2500)]
    assert Examples((x, y)).digests() == tuple(alone)
    assert Examples((x, y)).select(order).digests() == tuple(alone[i] for i in order)


def test_overlap_gives_positions_in_the_second():
    fresh = torch.cat([X[:1] + 0.5, X[3:4], X[:1] - 0.5, X[1:2]])
    assert overlap(Examples(X).digests(), Examples(fresh).digests()) == [1, 3]
    assert overlap(Examples(X).digests(), Examples(X + 0.25).digests()) == []


# ---- data that does not stand still --------------------------------------------------------------------------------


class Augmented(Squares):
    def __init__(self):
        self.generator = torch.Generator().manual_seed(0)

    def __getitem__(self, row):
        return X[row] + torch.randn(3, generator=self.generator), int(Y[row])


class Shuffled(Squares):
    """Draws a new order whenever its first item is read."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(0)

    def __getitem__(self, row):
        if row == 0:
            self.order = torch.randperm(5, generator=self.generator)
        return X[self.order[row]], Y[self.order[row]]


@pytest.mark.parametrize("make", [Augmented, Shuffled])
def test_a_dataset_that_changes_between_passes_is_refused(make):
    examples = Examples(make())
    examples.batch(0, 5)
    with pytest.raises(ValueError, match="not what it was when it was read before"):
        examples.batch(0, 5)


def test_a_change_is_seen_through_selections_and_after_hashing():
    items = [X[i].clone() for i in range(5)]
    examples = Examples(items)
    examples.digests()
    items[3] += 1
    assert torch.equal(examples.batch(0, 3), X[:3])
    with pytest.raises(ValueError, match="example 3 is not what it was"):
        examples.select([1, 3]).batch(0, 2)


def test_a_dataset_that_stands_still_can_be_read_again():
    examples = Examples(Squares())
    assert torch.equal(examples.batch(0, 5)[0], examples.batch(0, 5)[0])


def test_a_time_stamp_that_moves_by_a_second_is_a_change():
    items = [(1.7e9 + i, i % 2) for i in range(5)]
    examples = Examples(items)
    examples.batch(0, 5)
    items[2] = (1.7e9 + 3, 0)
    with pytest.raises(ValueError, match="example 2 is not what it was"):
        examples.batch(0, 5)


# ---- errors of the user's own code ---------------------------------------------------------------------------------


class Faulty(Squares):
    def __init__(self, error):
        self.error = error

    def __getitem__(self, row):
        if row == 3:
            raise self.error
        return super().__getitem__(row)


@pytest.mark.parametrize(
    "error", [KeyError("label"), OSError("no file"), IndexError(), RuntimeError("broken")], ids=repr
)
@pytest.mark.parametrize(
    "read", [lambda e: e.batch(2, 4), lambda e: e.digests(), lambda e: e.select([1, 3]).batch(1, 2)]
)
def test_an_error_in_the_dataset_says_which_example_was_read(read, error):
    examples = Examples(Faulty(error))
    with pytest.raises(
        cp.CannotProbeError, match=f"reading example 3 of the Faulty failed with {type(error).__name__}"
    ) as e:
        read(examples)
    assert e.value.__cause__ is error
    assert examples.batch(0, 3)[1].tolist() == [0, 1, 2]


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_an_interruption_goes_through(interrupt):
    def collate(items):
        raise interrupt

    with pytest.raises(interrupt):
        Examples(Faulty(interrupt())).batch(0, 5)
    with pytest.raises(interrupt):
        Examples(Squares(), collate).batch(0, 5)


@pytest.mark.parametrize("error", [KeyError("label"), AssertionError("two"), AttributeError("x")], ids=repr)
def test_an_error_in_collate_fn_says_what_was_collated(error):
    def collate(items):
        raise error

    message = f"examples 1 to 3 could not be collated .*collate_fn failed with {type(error).__name__}.*here 3"
    with pytest.raises(cp.CannotProbeError, match=message) as e:
        Examples(Squares(), collate).batch(1, 4)
    assert e.value.__cause__ is error
    with pytest.raises(cp.CannotProbeError, match="example 4 could not be collated"):
        Examples(Squares(), collate).batch(4, 5)


def test_what_cannot_be_collated_or_recognised_is_named():
    with pytest.raises(cp.CannotProbeError, match=r"examples 0 to 1 .*default \(TypeError.*pass collate_fn") as e:
        Examples([object(), object()]).batch(0, 2)
    assert isinstance(e.value.__cause__, TypeError)
    with pytest.raises(cp.CannotProbeError, match="content of example 0, a Tensor, could not be read"):
        Examples([torch.ones(2, device="meta")]).digests()


LISTS = {
    "['ids']": {"ids": [1, 2, 3], "n": 1},
    "[0]": ([0.5, 1.0], 1),
    "[1]['box']": [X[0], {"box": [True, False]}],
    "[0][0]": ([[1, 2], [3, 4]], 0),
    "['x']": {"x": [numpy.float64(1), numpy.float64(2)]},
}


@pytest.mark.parametrize(("where", "item"), LISTS.items(), ids=LISTS)
def test_lists_of_numbers_are_refused_and_not_transposed(where, item):
    with pytest.raises(cp.CannotProbeError) as e:
        Examples([item, item]).batch(0, 2)
    assert f"item{where} is a Python list of numbers" in str(e.value)
    assert 'set_format("torch")' in str(e.value)
    assert "collate_fn" in str(e.value)
    assert Examples([item, item], list).batch(0, 2) == [item, item]


@pytest.mark.parametrize("item", [[X[0], 1], [0.5, 1], (X[0], (0.5, 1)), {"text": ["a", "b"], "x": X[0]}])
def test_lists_and_tuples_of_parts_are_collated(item):
    assert len(Examples([item, item]).batch(0, 2)) == 2


# ---- what cannot be read -------------------------------------------------------------------------------------------


class Stream(IterableDataset):
    def __iter__(self):
        return iter(X)


class Endless(Dataset):
    def __getitem__(self, row):
        return X[0]


@pytest.mark.parametrize(
    ("arrays", "tensors"),
    [
        (X.numpy(), X),
        (X.numpy()[::-1], X.flip(0)),
        (X.numpy().astype(X.numpy().dtype.newbyteorder(">")), X),
        ((X.numpy(), Y.numpy()), (X, Y)),
        ((X, Y.numpy()), (X, Y)),
        ({"x": X.numpy(), "y": Y}, {"x": X, "y": Y}),
    ],
    ids=["array", "backwards", "of another byte order", "tuple", "tensor and array", "dict"],
)
def test_arrays_are_tensors(arrays, tensors):
    found, expected = Examples(arrays), Examples(tensors)
    assert found.digests() == expected.digests()
    assert type(found.batch(0, 2)) is type(expected.batch(0, 2))


def test_an_array_that_is_changed_later_leaves_the_data_as_it_was():
    array = X.numpy().copy()
    found = Examples(array)
    array[:] = 0
    assert torch.equal(found.batch(0, 5), X)


REFUSED = {
    "loader": (lambda: DataLoader(TensorDataset(X, Y)), TypeError, r"DataLoader.*loader\.dataset"),
    "stream": (Stream, TypeError, "IterableDataset.*no fixed order"),
    "array of words": (lambda: (X, numpy.array(["a"] * 5)), TypeError, "NumPy array of <U1; expected numbers"),
    "array of objects": (lambda: numpy.array([{}], dtype=object), TypeError, "NumPy array of object"),
    "no length": (Endless, TypeError, "without a length"),
    "generator": (lambda: (x for x in X), TypeError, "generator.*map-style dataset"),
    "text": (lambda: "text", TypeError, "str.*expected tensors"),
    "sparse": (lambda: (X.to_sparse(), Y), TypeError, r"sparse tensor.*to_dense\(\)"),
    "nothing": (lambda: None, TypeError, "NoneType.*expected tensors"),
    "unequal": (lambda: (X, Y[:4]), ValueError, r"lengths \[4, 5\]"),
    "no rows": (lambda: (X[:0], Y[:0]), ValueError, "no examples"),
    "empty list": (list, ValueError, "no examples"),
    "empty tuple": (tuple, ValueError, "no examples"),
    "no dimensions": (lambda: (X, torch.tensor(1.0)), ValueError, "without dimensions"),
}


@pytest.mark.parametrize(("make", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_data_without_fixed_examples_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        Examples(make())


def test_batches_take_the_models_dtype():
    batch = {"x": X.float(), "ids": Y, "nest": (X.bfloat16(), "text")}
    moved = to_model(batch, torch.float64, torch.device("cpu"))
    assert moved["x"].dtype == moved["nest"][0].dtype == torch.float64
    assert moved["ids"].dtype == torch.int64
    assert moved["nest"][1] == "text"
    assert torch.equal(moved["x"], X)


# ---- in a risk -----------------------------------------------------------------------------------------------------


def test_a_dataset_gives_what_its_tensors_give():
    case = cases.make("mlp")
    risk = cp.EmpiricalRisk(case.model, case.loss, TensorDataset(*case.data), microbatch_size=4)
    assert torch.equal(risk.losses(), case.risk(microbatch_size=4).losses())
    assert torch.allclose(risk[[5, 1]].gradient(), case.risk()[[5, 1]].gradient(), rtol=1e-10)
    assert torch.equal(risk.on(TensorDataset(*case.candidates)).losses(), risk.on(case.candidates).losses())


def test_a_forward_pass_that_writes_into_its_input_leaves_the_data_alone():
    x, y = cases.make("mlp").data
    kept = x.clone()
    cp.EmpiricalRisk(
        nn.Sequential(nn.ReLU(inplace=True), nn.Linear(3, 3)).double(), cp.losses.cross_entropy, (x, y)
    ).gradient()
    assert torch.equal(x, kept)


class Seeding(Dataset):
    """Fixed noise, by seeding the global generator for every item."""

    def __len__(self):
        return 8

    def __getitem__(self, row):
        torch.manual_seed(row)
        return torch.randn(3), row % 3


@pytest.mark.parametrize(
    "read",
    [
        lambda risk, new: new.value(),
        lambda risk, new: new.key(),
        lambda risk, new: cp.project(new, cp.random_subspace(new, 1)),
        lambda risk, new: cp.delta2_subspace(risk, new, cp.top_eigenspace(risk, dim=1), sigma=0.1),
    ],
    ids=["value", "key", "project", "delta2_subspace"],
)
def test_a_dataset_that_seeds_leaves_the_generators_alone(read):
    risk = cases.make("mlp").risk()
    torch.manual_seed(99)
    before = torch.get_rng_state()
    read(risk, risk.on(Seeding()))
    assert torch.equal(torch.get_rng_state(), before)
