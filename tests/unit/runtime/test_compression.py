import pytest

from bkray.config import UserError
from bkray.runtime.compression import Method, compress, parse_method


@pytest.mark.parametrize(
    ("text", "method"),
    [
        ("int8", Method("int8", bits=8)),
        ("int4", Method("int4", bits=4, group=64)),
        ("int4:32", Method("int4:32", bits=4, group=32)),
        ("prune:0.25", Method("prune:0.25", prune=0.25)),
        ("layers:2", Method("layers:2", layers=2)),
        ("layers:2+prune:0.5+int8", Method("layers:2+prune:0.5+int8", layers=2, prune=0.5, bits=8)),
        ("prune:.5+int4:32", Method("prune:.5+int4:32", prune=0.5, bits=4, group=32)),
    ],
)
def test_methods_are_read(text, method):
    assert parse_method(text) == method


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("int3", "'int3' is no way to compress: choose from int8"),
        ("int4:48", "no way to compress"),
        ("int8:64", "leave out :64"),
        ("prune:1", "between 0 and 1"),
        ("prune:0.0", "between 0 and 1"),
        ("prune", "no way to compress"),
        ("int8+int4", "at most one of each"),
        ("int8+prune:0.5", "in this order: layers, a pruning, a quantization"),
        ("int8+layers:2", "in this order"),
        ("prune:0.5+prune:0.1", "at most one of each"),
        ("layers", "no way to compress: .*layers:NUMBER"),
        ("", "no way to compress"),
    ],
)
def test_what_cannot_be_read_is_refused(text, message):
    with pytest.raises(UserError, match=message):
        parse_method(text)


def test_a_folder_that_holds_no_run_is_refused_and_left_alone(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        compress(tmp_path, ("int8",))
    assert not list(tmp_path.iterdir())
