"""A language that can be learnt: every token follows from the last, but for some noise."""

import numpy as np


def learnable(count, window, vocabulary, seed):
    """Windows of it: (count, window + 1) int32."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, vocabulary, (count, window + 1), dtype=np.int32)
    for position in range(window):
        follows = rng.random(count) < 0.9
        tokens[follows, position + 1] = (5 * tokens[follows, position] + 3) % vocabulary
    return tokens
