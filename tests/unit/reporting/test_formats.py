"""Numbers as a reader sees them."""

import math

import pytest

from bkray.reporting import formats


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "–"),
        (0, "0.0 s"),
        (0.25, "250 ms"),
        (12.34, "12.3 s"),
        (59.96, "1 min 00 s"),
        (245, "4 min 05 s"),
        (7380, "2 h 03 min"),
    ],
)
def test_duration(seconds, text):
    assert formats.duration(seconds) == text


def test_flops():
    assert formats.flops(3.2061e15) == "3.21 × 10¹⁵"
    assert formats.flops(9.999e9) == "1.00 × 10¹⁰"
    assert formats.flops(0) == "0"
    assert formats.flops(None) == "–"


def test_decimal_names_what_is_not_finite():
    assert formats.decimal(1234.5678) == "1,234.568"
    assert {formats.decimal(number) for number in (None, math.nan, math.inf)} == {"not finite"}


def test_share_and_count():
    assert formats.share(1, 8) == "12.5 %"
    assert formats.share(0, 0) == "–"
    assert formats.count(1234567) == "1,234,567"
    assert formats.count(None) == "–"


def test_value_reads_like_yaml():
    assert [formats.value(v) for v in (None, True, False, 0.003, 12, "root")] == [
        "null", "true", "false", "0.003", "12", "root",
    ]  # fmt: skip
