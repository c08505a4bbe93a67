"""Uncertainty x diversity: the most uncertain rows of every cluster, as equally many of each as there are.

    embeddings of a sample (S, D) ─► Clusters.fit ─┐
    embedding (W, D) ─────────────────────────────►├─► cluster (W,) ─► sizes ─► quotas ─► the quota of each
                                                   │
After Cluster-Margin (arXiv 2107.14263): cluster once, then go round the clusters and take the most uncertain
row of each until there are enough. Here the clusters are those of spherical k-means (Dhillon and Modha 2001,
seeded as in k-means++, Arthur and Vassilvitskii 2007) on a sample, so that nothing has to hold all rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

ROUNDS = 20
"""Of Lloyd's algorithm at most."""


@dataclass(frozen=True)
class Clusters:
    """Directions (C, D) of unit length around a mean (D,): the embedding's common part says nothing."""

    mean: np.ndarray
    directions: np.ndarray

    @classmethod
    def fit(cls, embeddings_SD: np.ndarray, count: int, seed: int) -> Clusters:
        """`count` clusters of a sample. Raises ValueError where it has fewer different rows."""
        mean = embeddings_SD.astype(np.float64).mean(axis=0)
        points = _directions(embeddings_SD, mean)
        if len(np.unique(points, axis=0)) < count:
            raise ValueError(f"{count} clusters of fewer different embeddings among {len(points)}")
        centres = _spread(points, count, np.random.default_rng(seed))
        before = None
        for _ in range(ROUNDS):
            assigned = _nearest(points, centres)
            if before is not None and (assigned == before).all():
                break
            centres, before = _moved(points, assigned, centres), assigned
        return cls(mean, centres)

    def assign(self, embeddings_WD: np.ndarray) -> np.ndarray:
        """The cluster of each row by the cosine, the first among equals: int32 (W,), from that row alone."""
        return _nearest(_directions(embeddings_WD, self.mean), self.directions)


def quotas(sizes: Mapping[int, int], k: int) -> dict[int, int]:
    """How many rows each cluster gives so that they are k in all: as equally many as their sizes allow.

    What cannot be shared equally comes from the first of the larger clusters. Clusters that give none are
    left out. Raises ValueError where there are fewer than k rows.
    """
    if sum(sizes.values()) < k:
        raise ValueError(f"{k} rows wanted of {sum(sizes.values())}")
    given: dict[int, int] = {}
    left = k
    by_size = sorted(sizes, key=lambda cluster: (sizes[cluster], -cluster))
    for turn, cluster in enumerate(by_size):
        given[cluster] = min(sizes[cluster], left // (len(by_size) - turn))
        left -= given[cluster]
    return {cluster: quota for cluster, quota in sorted(given.items()) if quota}


def _directions(embeddings: np.ndarray, mean: np.ndarray) -> np.ndarray:
    centred = embeddings.astype(np.float64) - mean
    return centred / np.maximum(np.sqrt((centred**2).sum(axis=1, keepdims=True)), 1e-12)


def _nearest(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    # einsum: a product by BLAS rounds a row's last bits by how many rows stand beside it
    return np.einsum("wd,cd->wc", points, centres).argmax(axis=1).astype(np.int32)


def _spread(points: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """First centres as in k-means++: each is drawn by its squared distance to the nearest one before it."""
    chosen = [int(rng.integers(len(points)))]
    distance = np.full(len(points), np.inf)
    while len(chosen) < count:
        distance = np.minimum(distance, ((points - points[chosen[-1]]) ** 2).sum(axis=1))
        chosen.append(int(rng.choice(len(points), p=distance / distance.sum())))
    return points[chosen]


def _moved(points: np.ndarray, assigned: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Every centre in the mean direction of its rows; one without rows stays."""
    sums = np.zeros_like(centres)
    np.add.at(sums, assigned, points)
    lengths = np.sqrt((sums**2).sum(axis=1, keepdims=True))
    return np.where(lengths > 0, sums / np.maximum(lengths, 1e-12), centres)
