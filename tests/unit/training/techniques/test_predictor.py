import numpy as np
import pytest

from bkray.evaluation import rank_correlation
from bkray.training import DifficultyPredictor

WINDOWS, LENGTH, VOCAB, BATCH = 400, 32, 64, 16


def planted(windows=WINDOWS):
    """Windows whose rare tokens make them hard, and a part of their difficulty that only their loss shows."""
    rng = np.random.default_rng(0)
    rare = rng.random(windows)
    shape = (windows, LENGTH + 1)
    tokens = np.where(
        rng.random(shape) < rare[:, None], rng.integers(8, VOCAB, shape), rng.integers(0, 8, shape)
    )
    hidden = rng.normal(size=windows)
    return tokens.astype(np.int32), rare, hidden


def correlations(losses_of, tokens, steps, difficulty=None, state_at=None, kept=BATCH):
    """Of every step the rank correlation of what was predicted before it and what was seen in it.

    Only the `kept` of largest predicted loss are seen.
    """
    rng, found = np.random.default_rng(1), []
    predictor = DifficultyPredictor(len(tokens), difficulty)
    order = np.concatenate([rng.permutation(len(tokens)) for _ in range(-(-steps * BATCH // len(tokens)))])
    for step in range(steps):
        if step == state_at:
            state, predictor = predictor.state_dict(), DifficultyPredictor(len(tokens), difficulty)
            predictor.load_state_dict(state)
        ids = order[step * BATCH : (step + 1) * BATCH]
        features = predictor.features(ids, tokens[ids])
        predicted = predictor.predict(features)
        top = np.sort(np.argsort(predicted)[-kept:])
        ids, features, losses = ids[top], features[top], losses_of(ids[top], step)
        found.append(rank_correlation(predicted[top], losses))
        predictor.learn(ids, tokens[ids], features, losses)
    return np.array(found[2:])  # the first two know no counts and no losses


def test_rare_tokens_are_found_before_any_window_comes_twice():
    tokens, rare, _ = planted()
    found = correlations(lambda ids, step: 5.0 - 0.1 * step + rare[ids], tokens, 25)
    assert found[5:].mean() > 0.9


def test_what_only_the_last_loss_shows_is_found_in_the_second_pass():
    tokens, _, hidden = planted()
    found = correlations(lambda ids, step: 5.0 - 0.05 * step + hidden[ids], tokens, 50)
    assert abs(np.nanmean(found[:24])) < 0.2  # nothing to know it by
    assert found[26:].mean() > 0.9


def test_a_given_difficulty_is_used():
    tokens, _, hidden = planted()
    found = correlations(lambda ids, step: hidden[ids], tokens, 25, difficulty=np.exp(hidden))
    assert found[5:].mean() > 0.8


def test_it_follows_what_changes():
    """Rare tokens are hard at first and easy later: old steps are forgotten."""
    tokens, rare, _ = planted(250 * BATCH)  # none comes twice, so that no last loss tells it
    found = correlations(lambda ids, step: 5.0 + (1 if step < 130 else -1) * rare[ids], tokens, 250)
    assert found[100:120].mean() > 0.9
    assert found[-20:].mean() > 0.9


def test_noise_is_not_predicted():
    tokens, _, _ = planted()
    rng = np.random.default_rng(2)
    found = correlations(lambda ids, step: rng.normal(size=len(ids)), tokens, 150)
    assert abs(np.nanmean(found)) < 3 / np.sqrt(150 * (BATCH - 1))


def test_the_level_of_the_loss_is_no_part_of_the_prediction():
    tokens, rare, hidden = planted()
    low = correlations(lambda ids, step: rare[ids] + hidden[ids], tokens, 60, kept=8)
    high = correlations(lambda ids, step: 1000.0 - step + rare[ids] + hidden[ids], tokens, 60, kept=8)
    np.testing.assert_allclose(high, low, atol=0.02)


def test_state_round_trips():
    tokens, rare, hidden = planted()
    whole = correlations(lambda ids, step: rare[ids] + hidden[ids], tokens, 60)
    resumed = correlations(lambda ids, step: rare[ids] + hidden[ids], tokens, 60, state_at=37)
    np.testing.assert_array_equal(resumed, whole)


def test_more_candidates_cost_more():
    predictor = DifficultyPredictor(10)
    assert predictor.flops(20, 16, 256) - predictor.flops(19, 16, 256) == pytest.approx(256 + 2 * 3)
