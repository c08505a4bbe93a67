"""Clusters that depend on one row at a time, and quotas that are as equal as sizes allow."""

import numpy as np
import pytest

from bkray.selection import Clusters, quotas


def groups(rows=400, directions=5, width=12):
    """Embeddings in five directions around a large common part, and which direction each has."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((directions, width))
    belongs = rng.integers(0, directions, rows)
    noise = 0.1 * rng.standard_normal((rows, width))
    return (20.0 + rng.uniform(0.5, 3.0, (rows, 1)) * (centres[belongs] + noise)).astype(np.float16), belongs


def test_directions_are_told_apart_whatever_the_common_part_and_the_length():
    embeddings, belongs = groups()
    found = Clusters.fit(embeddings, 5, seed=0).assign(embeddings)
    pairs = {(int(a), int(b)) for a, b in zip(found, belongs, strict=True)}
    assert len(pairs) == 5


def test_a_row_has_the_same_cluster_alone_and_among_others_and_the_fit_repeats_itself():
    embeddings, _ = groups()
    clusters = Clusters.fit(embeddings, 9, seed=3)
    again = Clusters.fit(embeddings, 9, seed=3)
    np.testing.assert_array_equal(clusters.directions, again.directions)
    together = clusters.assign(embeddings)
    for height in (1, 7, 64):
        parts = [clusters.assign(embeddings[start : start + height]) for start in range(0, 400, height)]
        np.testing.assert_array_equal(together, np.concatenate(parts))
    other = Clusters.fit(embeddings, 9, seed=4)
    assert not np.array_equal(clusters.directions, other.directions)


def test_more_clusters_than_different_rows_are_refused():
    with pytest.raises(ValueError, match="3 clusters of fewer different embeddings among 10"):
        Clusters.fit(np.repeat(np.eye(2), 5, axis=0), 3, seed=0)


@pytest.mark.parametrize(
    ("sizes", "k", "expected"),
    [
        ({0: 5, 1: 1, 2: 9, 3: 9}, 12, {0: 3, 1: 1, 2: 4, 3: 4}),
        ({0: 2, 1: 2, 2: 2}, 4, {0: 2, 1: 1, 2: 1}),
        ({0: 1, 1: 100}, 50, {0: 1, 1: 49}),
        ({4: 3, 7: 3}, 1, {4: 1}),
        ({4: 3, 7: 3}, 6, {4: 3, 7: 3}),
    ],
)
def test_quotas_are_as_equal_as_sizes_allow(sizes, k, expected):
    assert quotas(sizes, k) == expected


def test_more_rows_than_there_are_have_no_quotas():
    with pytest.raises(ValueError, match="7 rows wanted of 6"):
        quotas({0: 3, 1: 3}, 7)
