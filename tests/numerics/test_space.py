import torch

from curvprobe.numerics.space import Space


def of_two(other):
    """A space of which another holder has ``other`` of whatever is summed; the first holder turns vectors around."""
    return Space(5, (slice(0, 3),), lambda mine: mine + other(mine), lambda mine: -mine)


def test_alone_everything_is_held_and_agreed():
    space = Space(5)
    matrix = torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
    values, vectors = space.eigh(matrix)
    assert space.held == 5
    assert space.alike(-1)
    assert space.decides(True)
    assert not space.decides(False)
    assert torch.equal(values, torch.linalg.eigh(matrix)[0])
    assert torch.equal(vectors, torch.linalg.eigh(matrix)[1])


def test_a_norm_is_of_all_coordinates():
    """The other holder has 4 and 0 of (1, 2, 2, 4, 0)."""
    space = of_two(lambda mine: torch.full_like(mine, 16.0))
    assert space.held == 3
    assert space.norm(torch.tensor([1.0, 2.0, 2.0], dtype=torch.float64)) == 5.0


def test_numbers_are_alike_where_all_holders_have_the_same():
    for mine, theirs, same in ((4, 4, True), (4, 5, False), (-1, -1, True), (-1, 0, False), (0, 0, True)):
        told = torch.tensor([1.0, theirs, theirs**2], dtype=torch.float64)
        assert of_two(lambda _, told=told: told).alike(mine) == same


def test_vectors_and_decisions_are_the_first_holders():
    matrix = torch.diag(torch.tensor([1.0, 3.0], dtype=torch.float64))
    values, vectors = of_two(lambda mine: mine).eigh(matrix)
    assert torch.equal(vectors, -torch.linalg.eigh(matrix)[1])
    assert torch.equal(values, -torch.linalg.eigh(matrix)[0])
    says_no = Space(5, (slice(0, 3),), lambda mine: mine, torch.zeros_like)
    assert not says_no.decides(True)


def test_vectors_are_whole_where_they_are_ever():
    """The other holder has 4 and 0 of (1, 2, 2, 4, 0)."""

    def gathered(mine):
        return torch.cat([mine, torch.tensor([4.0, 0.0], dtype=mine.dtype)])

    mine, whole = torch.tensor([1.0, 2.0, 2.0]), torch.tensor([1.0, 2.0, 2.0, 4.0, 0.0])
    sums = (lambda part: part + 16, lambda part: part)
    space, stays = (Space(5, (slice(0, 3),), *sums, gathered, stays=stays) for stays in (False, True))
    assert torch.equal(space.whole(mine), whole)
    assert torch.equal(whole[space.rows], mine)
    assert stays.whole(mine) is mine
    assert torch.equal(mine[stays.rows], mine)
    assert Space(5).whole(whole) is whole
    assert space.inner(mine[None], mine).tolist() == space.inner(mine[None], mine, quick=True).tolist() == [25.0]
    assert Space(5, (slice(0, 2), slice(4, 5))).held == 3
