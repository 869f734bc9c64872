"""Crystals as CHGNet's own converter asks for them, without pymatgen."""

from dataclasses import dataclass
from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np

PAIRS = {"CsCl": (55, 17, 4.12), "LiAg": (3, 47, 3.17), "TlBr": (81, 35, 3.97), "AgMg": (47, 12, 3.31)}
"""Atomic numbers, and the side of the cubic cell in angstrom, of some that crystallise like caesium chloride."""


@dataclass(frozen=True)
class Crystal:
    """What the converter reads of a structure: positions in units of a cubic cell, its side, and atomic numbers."""

    frac_coords: np.ndarray
    side: float
    numbers: tuple[int, ...]

    @property
    def sites(self) -> list[Any]:
        """The atoms."""
        return [SimpleNamespace(specie=SimpleNamespace(Z=number)) for number in self.numbers]

    @property
    def lattice(self) -> Any:
        """The cell's vectors, by rows."""
        return SimpleNamespace(matrix=self.side * np.eye(3))

    @property
    def composition(self) -> Any:
        """Its formula."""
        return SimpleNamespace(formula="-".join(map(str, self.numbers)))

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Any:
        return iter(self.sites)

    def get_neighbor_list(self, r: float, sites: Any, numerical_tol: float) -> tuple[np.ndarray, ...]:  # noqa: ARG002
        """Pairs of atoms nearer than r: first, second, the second's cell, and their distance."""
        reach = int(np.ceil(r / self.side))
        images = np.array(list(product(range(-reach, reach + 1), repeat=3)))
        apart = self.frac_coords[None, :, None] + images - self.frac_coords[:, None, None]
        distance = self.side * np.linalg.norm(apart, axis=-1)
        first, second, image = np.nonzero((distance < r) & (distance > numerical_tol))
        return first, second, images[image], distance[first, second, image]


def shaken(count: int, seed: int = 0) -> list[Crystal]:
    """Cells of two atoms of one crystal after the other, each atom moved by a few hundredths of the cell."""
    draws = np.random.default_rng(seed)
    places = np.array([[0.0, 0.0, 0.0], [0.5, 0.5, 0.5]])
    made = []
    for i in range(count):
        one, other, side = list(PAIRS.values())[i % len(PAIRS)]
        made.append(Crystal(places + draws.normal(0, 0.02, (2, 3)), side * draws.uniform(0.97, 1.03), (one, other)))
    return made
