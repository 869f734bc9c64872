import os
import signal

import pytest
import torch

from curvprobe import errors
from curvprobe.runtime.ranks import ALONE, Ranks
from tests import several


def exchanges(group):
    """Of everything that processes tell one another, on 5 rows."""
    ranks = Ranks(group)
    rows = torch.arange(10.0, dtype=torch.float64).view(5, 2)
    part = ranks.share(5)
    return {
        "part": (part.start, part.stop),
        "total": ranks.total(torch.tensor([1.0, ranks.rank], dtype=torch.float64)).tolist(),
        "whole": ranks.whole(rows[part], 5).tolist(),
        "share": ranks.share_of_total((ranks.rank + 1) * rows).tolist(),
        "share of each": ranks.share_of_each((ranks.rank + 1) * rows).tolist(),
        "from each": ranks.from_each(
            (ranks.rank + 1) * torch.stack([r + rows[part] for r in range(ranks.world)]), 5
        ).tolist(),
        "least": ranks.least(7 - ranks.rank),
        "of first": ranks.of_first(torch.tensor(float(ranks.rank))).item(),
        "from first": ranks.from_first(lambda: ("made by", ranks.rank)),
        "share of the first's": ranks.share_of_firsts(rows if ranks.rank == 0 else None).tolist(),
        "space": the_same_space(ranks, rows),
    }


def the_same_space(ranks, rows):
    """Whether what the space does is what the processes do."""
    space, part = ranks.space(5), ranks.share(5)
    return (
        space.held == part.stop - part.start
        and torch.equal(space.whole(rows[part]), rows)
        and space.norm(rows[part, 1]) == float(rows[:, 1].norm())
        and torch.equal(space.handed_out(rows[:, 1] if ranks.rank == 0 else None), rows[part, 1])
    )


def goes_another_way(group):
    """The second process asks for something else than the first."""
    ranks = Ranks(group)
    return ranks.whole(torch.ones(1), 2) if ranks.rank else ranks.total(torch.ones(1))


def test_processes_that_do_not_do_the_same_say_so():
    for outcome in several.run(2, goes_another_way):
        assert type(outcome.error) is errors.RankError
        assert "and others do something else; expected all to make the same calls" in str(outcome.error)


@pytest.mark.parametrize("world", [2, 3, 6])
def test_what_they_tell_one_another(world):
    found = several.values(world, exchanges)
    rows = torch.arange(10.0, dtype=torch.float64).view(5, 2)
    each = -(-5 // world)
    for rank, one in enumerate(found):
        start, stop = one["part"]
        assert (start, stop) == (min(rank * each, 5), min(rank * each + each, 5))
        assert one["total"] == [world, world * (world - 1) / 2]
        assert one["whole"] == rows.tolist()
        assert one["share"] == (world * (world + 1) / 2 * rows[start:stop]).tolist()
        assert one["share of each"] == [((other + 1) * rows[start:stop]).tolist() for other in range(world)]
        holders = torch.arange(5).div(each, rounding_mode="floor")[:, None]
        assert one["from each"] == ((holders + 1) * (rank + rows)).tolist()
        assert one["least"] == 8 - world
        assert one["of first"] == 0.0
        assert one["from first"] == ("made by", 0)
        assert one["share of the first's"] == rows[start:stop].tolist()
        assert one["space"]


def test_alone_nothing_is_sent():
    part = torch.ones(3)
    assert ALONE.total(part) is part
    assert ALONE.whole(part, 3) is part
    assert ALONE.share_of_total(part) is part
    assert torch.equal(ALONE.from_each(ALONE.share_of_each(part), 3), part)
    assert (ALONE.share(5), ALONE.world, ALONE.rank, ALONE.several) == (slice(0, 5), 1, 0, False)
    with ALONE.together(), ALONE.told():
        assert ALONE.from_first(lambda: 3) == 3
        assert ALONE.least(4) == 4


def test_a_group_that_is_none_is_refused():
    with pytest.raises(errors.ArgumentTypeError, match=r"expected a torch\.distributed\.ProcessGroup"):
        Ranks(2)


def fails(group, rank, where, error):
    """Work in which one process fails: within a block of its own, between exchanges, or in the first one's part."""
    ranks = Ranks(group)
    with ranks.told():
        ranks.total(torch.ones(1))
        with ranks.together(", counting from example 3 on" if ranks.rank else ""):
            if where == "within" and ranks.rank == rank:
                raise error
        if where == "between" and ranks.rank == rank:
            raise error
        if where == "first":
            ranks.from_first(lambda: [][1])
        ranks.whole(torch.ones(1), ranks.world)
    return "went on"


@pytest.mark.parametrize("where", ["within", "between"])
def test_one_that_fails_takes_the_others_with_it(where):
    for rank, error in ((1, errors.NotFiniteError("example 2 is nan")), (0, KeyError("loss"))):
        found = several.run(3, fails, rank, where, error)
        for other, outcome in enumerate(found):
            assert outcome.code == 0
            assert outcome.seconds < 30
            if other == rank:
                assert (type(outcome.error), outcome.error.args) == (type(error), error.args)
            elif rank == 1:
                assert type(outcome.error) is errors.NotFiniteError
                counting = ", counting from example 3 on" if where == "within" else ""
                assert str(outcome.error) == f"rank 1{counting}: example 2 is nan"
            else:
                assert type(outcome.error) is errors.RankError
                assert str(outcome.error) == "rank 0 stopped with KeyError: 'loss'"


def test_where_several_fail_all_raise_what_the_first_of_them_raised():
    first, second = (one.error for one in several.run(2, fail_differently))
    assert type(first) is errors.NotFiniteError
    assert type(second) is errors.NotFiniteError
    assert str(first) == "number 0"
    assert str(second) == "rank 0: number 0"


def fail_differently(group):
    ranks = Ranks(group)
    with ranks.told(), ranks.together():
        raise errors.NotFiniteError("number 0") if ranks.rank == 0 else MemoryError


def test_the_first_ones_own_work_fails_in_all():
    first, second = (one.error for one in several.run(2, fails, -1, "first", None))
    assert type(first) is IndexError
    assert type(second) is errors.RankError
    assert "IndexError" in str(second)


def is_killed(group, rank):
    ranks = Ranks(group)
    ranks.expect_same("samples", 3)
    if ranks.rank == rank:
        os.kill(os.getpid(), signal.SIGKILL)
    ranks.total(torch.ones(1))


@pytest.mark.parametrize("rank", [0, 1])
def test_where_one_is_killed_the_others_stop(rank):
    found = several.run(3, is_killed, rank)
    for other, outcome in enumerate(found):
        assert outcome.seconds < 30
        if other == rank:
            assert outcome.code == -signal.SIGKILL
        else:
            assert type(outcome.error) is errors.LostError
            assert f"rank {other} of 3 lost another process, killed or cut off: " in str(outcome.error)
            assert f"rank {rank} (process " in str(outcome.error)  # and who has left since


def holds_other_data(group):
    Ranks(group).expect_same("samples", 3, [0.5, float(group.rank())])


def test_processes_with_other_data_are_refused():
    for outcome in several.run(2, holds_other_data):
        assert type(outcome.error) is errors.RankError
        assert "different samples; expected each process to load the same model" in str(outcome.error)
