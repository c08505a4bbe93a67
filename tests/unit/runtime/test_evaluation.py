import pytest

from bkray.runtime.evaluation import Written


@pytest.mark.parametrize(
    ("tokens", "seconds", "shown"),
    [
        (101, 0.5, "101 tokens, 200 tokens a second (12 tokens of prompt read in 0.30 s)"),
        (1, 0.0, "12 tokens of prompt read in 0.30 s"),
    ],
)
def test_the_speed_leaves_out_the_prompt(tokens, seconds, shown):
    assert Written("text", 12, tokens, 0.3, seconds).speed == shown
