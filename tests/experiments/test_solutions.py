"""The solutions that experiments look at, and what they keep."""

import pytest
import torch

from curvprobe.experiments.solutions import converged, stream, streamed, unseen
from curvprobe.runtime.digest import overlap
from curvprobe.runtime.store import Store
from tests.experiments.tiny import TINY, sequences


def test_a_stream_has_been_trained_on_its_sample_and_not_on_what_comes_next():
    first, second = stream(TINY, sequences(), [8, 16], 6, seed=1)
    assert len(first.risk) == 8
    assert len(second.risk) == 16
    assert torch.equal(second.data[:8], first.data)
    assert torch.equal(second.data[8:14], first.new_data)
    for solution in (first, second):
        assert not overlap(solution.risk.digests(), solution.new.digests())
        assert len(solution.new) == 6
    assert second.risk.value() < first.risk.on(second.data).value()  # it goes on learning
    assert streamed(TINY, sequences(), 16, 8, 6, seed=1, store=Store(None)).risk.value() == second.risk[:8].value()


def test_a_stream_trains_as_plain_adamw_on_the_mean_over_tokens():
    (solution,) = stream(TINY, sequences(), [4], 1, seed=3)
    order = torch.randperm(len(sequences()), generator=torch.Generator().manual_seed(3))
    tokens = sequences()[order[:4]]
    model = TINY.model(3)
    logits = model(input_ids=tokens).logits
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.0)
    optimizer.step()  # at a tenth of the rate, the first of ten steps of warming up
    for found, expected in zip(solution.module.parameters(), model.parameters(), strict=True):
        assert torch.allclose(found, expected, atol=1e-6)


def test_what_a_repetitive_text_holds_twice_does_not_come_next():
    tokens = torch.tensor([[1], [2], [1], [3], [2], [4], [3]])
    assert unseen(tokens, 2, 2).tolist() == [[3], [4]]
    assert unseen(tokens, 3, 3).tolist() == [[3], [4], [3]]
    with pytest.raises(ValueError, match=r"of the 5 sequences after the first 2 only 3 are .* needs 4"):
        unseen(tokens, 2, 4)


@pytest.mark.parametrize("ks", [[6], [8, 4], [8, 8]])
def test_sample_sizes_that_the_batch_does_not_make_are_refused(ks):
    with pytest.raises(ValueError, match="expected ascending multiples of the batch, which is 4"):
        next(stream(TINY, sequences(), ks, 1, seed=0))


def test_a_text_that_is_too_short_is_refused(tmp_path):
    path = tmp_path / "short.txt"
    path.write_text("Some words.\n\nAnd some more of them. " * 40)
    tokens = TINY.sequences(path, Store(None))
    assert tokens.shape[1] == TINY.context
    with pytest.raises(ValueError, match=f"the text has {len(tokens)} sequences of 12 tokens and .* needs 4001"):
        next(stream(TINY, tokens, [4000], 1, seed=0))


def test_tokens_and_weights_are_found_by_the_next_experiment(tmp_path, monkeypatch):
    path, store = tmp_path / "text.txt", Store.at(tmp_path / "stages")
    path.write_text("Some words.\n\nAnd some more of them. " * 40)
    tokens = TINY.sequences(path, store)
    first = streamed(TINY, tokens, 8, 4, 1, seed=0, store=store)
    monkeypatch.setattr("curvprobe.experiments.solutions.token_sequences", None)
    monkeypatch.setattr("curvprobe.experiments.solutions.stream", None)
    assert torch.equal(TINY.sequences(path, store), tokens)
    again = streamed(TINY, tokens, 8, 4, 1, seed=0, store=store)
    assert torch.equal(again.data, first.data)
    assert torch.equal(again.new_data, first.new_data)
    assert again.risk.value() == first.risk.value()
    with pytest.raises(TypeError):  # another model is trained
        streamed(TINY, tokens, 8, 4, 1, seed=1, store=store)


def test_a_text_that_is_no_utf8_is_refused(tmp_path):
    path = tmp_path / "bytes.txt"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="cannot be read as UTF-8"):
        TINY.sequences(path, Store(None))


def test_converged_weights_are_minimisers_of_nested_samples():
    small, large = converged((32, 64), 5, seed=0)
    for solution, k in ((small, 32), (large, 64)):
        assert len(solution.risk) == k
        assert float(solution.risk.gradient().norm()) < 1e-3
        assert not overlap(solution.risk.digests(), solution.new.digests())
    assert torch.equal(large.data[0][:32], small.data[0])
