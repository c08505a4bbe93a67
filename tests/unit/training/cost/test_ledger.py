import pytest

from bkray.training import Ledger


def test_costs_add_up_by_kind_and_survive_a_restart():
    ledger = Ledger()
    ledger.charge("training", flops=10.0, tokens=4, seconds=1.0)
    ledger.charge("training", flops=5.0)
    ledger.charge("scoring", flops=1.0)
    assert ledger.total_flops == 16.0
    assert ledger.table()["training"] == {"flops": 15.0, "tokens": 4, "seconds": 1.0}
    other = Ledger()
    other.load_state_dict(ledger.state_dict())
    other.merge(ledger.table())
    assert other.total_flops == 32.0


def test_a_negative_cost_is_refused():
    with pytest.raises(ValueError, match="never negative"):
        Ledger().charge("training", flops=-1.0)
