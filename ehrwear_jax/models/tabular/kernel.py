"""Fits kernel machines on dense features: penalised logistic, Cox or ridge regression with a Gaussian kernel.

A probe that is not linear, for features whose units mean nothing by themselves, as a network's latents: whether z holds
what a task needs, not only whether it holds it along a line. The kernel exp(-gamma ||x - x'||^2) of standardised
features is approximated by Nystroem's method (Williams and Seeger, NeurIPS 2000): `LANDMARKS` training rows at most,
drawn by a seed, and coordinates in which the plain inner product is the kernel projected on them. A linear model
without further scaling is fitted in these (linear.py). gamma is a multiple of 1 / (number of features); that and the
penalty are chosen on the tuning split, and the scores of the gammas of lowest loss are averaged, as those of boosted
trees are.

Memory: training rows (at most `MOST_ROWS`, drawn by the seed) and landmarks times landmarks, landmarks times features,
float32; rows of features are read some at a time. Array suffixes: N rows, F features, M landmarks.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import scipy  # its submodules load at first use
from scipy import sparse

from ehrwear_jax.models.tabular import linear
from ehrwear_jax.models.tabular.losses import Loss

GAMMAS = (0.1, 0.2, 0.4, 0.8, 1.6)  # over the number of features: 0.5 is the usual choice for independent ones
L2_GRID = (1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5)
LANDMARKS = 1024
MOST_ROWS = 65_536
_CLIP = 6.0  # standard deviations: further off, a row is like no other
_ROWS_AT_ONCE = 4096
_LEAST = 1e-6  # eigenvalues below this part of the largest are rounding error


@dataclasses.dataclass(frozen=True)
class Coordinates:
    """Maps standardised features to coordinates whose inner product is the kernel's.

    Attributes:
      landmark_MxF: standardised training rows. gamma: of the kernel. map_MxM: from kernel values to coordinates.
    """

    landmark_MxF: np.ndarray
    gamma: float
    map_MxM: np.ndarray

    @classmethod
    def of(cls, landmark_MxF: np.ndarray, gamma: float) -> "Coordinates":
        """From the eigenvectors of the landmarks' kernel matrix."""
        value_M, vector_MxM = scipy.linalg.eigh(_kernel(landmark_MxF, landmark_MxF, gamma).astype(np.float64))
        kept_M = value_M > _LEAST * value_M[-1]
        return cls(landmark_MxF, gamma, (vector_MxM[:, kept_M] / np.sqrt(value_M[kept_M])).astype(np.float32))

    def __call__(self, x_NxF: np.ndarray) -> np.ndarray:
        """Float32 [N, M], of standardised features."""
        return _kernel(x_NxF, self.landmark_MxF, self.gamma) @ self.map_MxM


@dataclasses.dataclass(frozen=True)
class Scale:
    """What features are standardised by: mean and standard deviation of the training rows, infinite where constant."""

    mean_F: np.ndarray
    sd_F: np.ndarray

    def __call__(self, x: sparse.csr_matrix) -> np.ndarray:
        """Float32 [N, F]."""
        unit_NxF = (x.toarray() - self.mean_F.astype(np.float32)) / self.sd_F.astype(np.float32)
        return np.clip(unit_NxF, -_CLIP, _CLIP, out=unit_NxF)

    def blocks(self, x: sparse.csr_matrix) -> Iterator[tuple[slice, np.ndarray]]:
        """(which, float32 [n, F]) of all rows, some at a time."""
        for begin in range(0, x.shape[0], _ROWS_AT_ONCE):
            rows = slice(begin, begin + _ROWS_AT_ONCE)
            yield rows, self(x[rows])


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A fitted kernel machine.

    Attributes:
      scale: of the features.
      members: coordinates, and the linear model in them, of each gamma whose scores are averaged.
      tuning_loss: {gamma: loss}, of those that were tried.
    """

    scale: Scale
    members: list[tuple[Coordinates, linear.Linear]]
    tuning_loss: dict[float, float]

    def score(self, x: sparse.csr_matrix) -> np.ndarray:
        """Log-odds, log-hazard or value, float64 [N]."""
        total_N = np.zeros(x.shape[0])
        for rows, some in self.scale.blocks(x):
            for coordinates, model in self.members:
                total_N[rows] += model.score([coordinates(some)])
        return total_N / len(self.members)


def fit(
    x_train: sparse.csr_matrix,
    train: Loss,
    x_tuning: sparse.csr_matrix,
    tuning: Loss,
    averaged: int = 1,
    gammas: Sequence[float] = GAMMAS,
) -> Kernel:
    """A kernel machine; deterministic but for the rows that its loss was given.

    Args:
      x_train, x_tuning: encoded features, float32 [N, F]; no more rows to train on than MOST_ROWS (`rows`).
      train, tuning: losses of these rows. averaged: number of gammas whose scores are averaged.
    """
    scale = Scale(*linear.moments([x_train], least=0.0))
    landmark_MxF = scale(x_train[_drawn(x_train.shape[0], LANDMARKS)])
    n_features = max(int(np.isfinite(scale.sd_F).sum()), 1)
    found = {}
    for gamma in gammas:
        coordinates = Coordinates.of(landmark_MxF, gamma / n_features)
        own_NxM, other_NxM = (
            np.concatenate([coordinates(some) for _, some in scale.blocks(x)]) for x in (x_train, x_tuning)
        )
        own = own_NxM.mean(0, np.float64), np.ones(own_NxM.shape[1])
        model = linear.fit([own_NxM], train, [other_NxM], tuning, L2_GRID, own)
        found[gamma] = model.tuning_loss[model.l2], coordinates, model
    best = sorted(found, key=lambda gamma: found[gamma][0])[:averaged]
    return Kernel(scale, [found[g][1:] for g in best], {g: loss for g, (loss, *_) in found.items()})


def rows(n_rows: int) -> np.ndarray:
    """The training rows that are fitted to, in order: all of them, or MOST_ROWS drawn ones."""
    return _drawn(n_rows, MOST_ROWS)


def _drawn(n, most):
    return np.arange(n) if n <= most else np.sort(np.random.default_rng(0).permutation(n)[:most])


def _kernel(x_NxF, y_MxF, gamma):
    """Float32 [N, M]."""
    square = (x_NxF**2).sum(1)[:, None] + (y_MxF**2).sum(1)[None] - 2 * (x_NxF @ y_MxF.T)
    return np.exp(-gamma * np.maximum(square, 0))
