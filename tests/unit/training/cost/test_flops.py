"""What is counted: attention too, on the CPU as on a GPU."""

from bkray.model import Transformer, TransformerConfig
from bkray.training.cost.flops import forward_flops


def test_a_transformer_is_counted_with_its_attention():
    d, layers, vocabulary = 16, 3, 40
    model = Transformer(TransformerConfig(vocabulary, d, layers, n_heads=2, feed_forward_width=24))
    for window in (8, 32):
        matrices = layers * (4 * d * d + 2 * d * 24) + vocabulary * d
        attention = layers * 2 * window * d  # queries by keys, weights by values, over all pairs of sites
        assert forward_flops(model, window) == 2 * window * (matrices + attention)
