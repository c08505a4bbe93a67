"""How many windows a selection keeps. No cluster needed."""

import pytest

from bkray.config import UserError
from bkray.config.preparation import Selection
from bkray.runtime.selection import kept_of


def test_the_share_is_rounded_and_one_window_at_least_is_kept():
    half, hardly = (Selection(kind="random", keep=keep) for keep in (0.5, 0.001))
    assert [kept_of(half, rows) for rows in (2, 7, 1000)] == [1, 4, 500]
    assert kept_of(hardly, 9) == 1


@pytest.mark.parametrize(("keep", "rows"), [(0.99999, 1200), (0.8, 2), (0.1, 1)])
def test_a_selection_of_all_windows_is_refused(keep, rows):
    message = rf"selection.keep {keep} of {rows:,} windows is all of them.*: lower it, remove selection"
    with pytest.raises(UserError, match=message):
        kept_of(Selection(kind="random", keep=keep), rows)
