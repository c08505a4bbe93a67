from bkray.runtime.training import _progress


def test_the_time_left_follows_the_pace_of_the_steps():
    text = _progress({"step": 10, "loss": 1.25, "seconds": 5.0}, 1010)
    assert text == "step 10 of 1,010, loss 1.250, about 500 s left"
    assert "loss nan" in _progress({"step": 10, "loss": None, "seconds": 5.0}, 20)
