import gc
import time
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import ray
from ray.data import ActorPoolStrategy

from bkray.config import UserError
from bkray.runtime.exits import find_user_error
from bkray.runtime.stages import (
    blocks_of,
    map_tables,
    read_parts,
    take_each,
    threshold_each,
    top_k,
    write_parts,
)

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("two_cpus")]

SCHEMA = pa.schema(
    [pa.field("window_id", pa.int64()), pa.field("score", pa.float32()), pa.field("note", pa.string())]
)


def table(rows=1000, seed=0):
    rng = np.random.default_rng(seed)
    notes = pa.array([None if i % 3 else f"n{i}" for i in range(rows)], pa.string())
    ids = rng.permutation(rows).astype(np.int64)
    return pa.table([ids, rng.integers(0, 20, rows).astype(np.float32), notes], schema=SCHEMA)


def blocks(whole, count):
    """The same rows as a dataset of `count` blocks of unequal size, in another order."""
    edges = np.unique(np.linspace(0, np.sqrt(len(whole)), count + 1) ** 2).astype(int)
    pieces = [whole.slice(a, b - a) for a, b in pairwise(edges) if b > a]
    return ray.data.from_arrow(pieces[::-1])


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_parts_are_the_same_bytes_whatever_the_blocks(tmp_path):
    written = []
    for count in (1, 3, 17):
        folder = tmp_path / str(count)
        folder.mkdir()
        assert (
            write_parts(blocks(table(), count), folder, SCHEMA, ["score", "window_id"], rows_per_part=300)
            == 1000
        )
        written.append(contents(folder))
    assert written[0] == written[1] == written[2]
    assert list(written[0]) == [f"part-{number:05d}.parquet" for number in range(4)]
    read = pa.concat_tables(pq.read_table(path) for path in sorted((tmp_path / "3").iterdir()))
    assert read.equals(table().sort_by([("score", "ascending"), ("window_id", "ascending")]))
    assert read.schema == SCHEMA


def test_parts_of_long_texts_have_fewer_rows_whatever_the_blocks(tmp_path):
    rng = np.random.default_rng(0)
    lengths = [int(length) for length in rng.integers(0, 40, 200)]
    lengths[70] = lengths[71] = 500  # longer than a part: alone in it
    whole = pa.table([range(200), [0.0] * 200, ["é" * length for length in lengths]], schema=SCHEMA)
    expected, rows, size = [], 0, 0
    for length in lengths:
        if rows and (rows == 9 or size + 2 * length > 300):
            expected, rows, size = [*expected, rows], 0, 0
        rows, size = rows + 1, size + 2 * length
    expected.append(rows)
    assert {1, 9} < set(expected)
    for count in (1, 3, 17):
        folder = tmp_path / str(count)
        folder.mkdir()
        write_parts(blocks(whole, count), folder, SCHEMA, ["window_id"], rows_per_part=9, bytes_per_part=300)
        parts = [pq.read_table(path) for path in sorted(folder.iterdir())]
        assert [len(part) for part in parts] == expected
        assert pa.concat_tables(parts).equals(whole)


def test_an_empty_dataset_makes_one_empty_part(tmp_path):
    assert write_parts(ray.data.from_arrow(table().slice(0, 0)), tmp_path, SCHEMA, ["window_id"]) == 0
    assert pq.read_table(tmp_path / "part-00000.parquet").schema == SCHEMA


def first_by_score(rows, k):
    ordered = rows.sort_by([("score", "descending"), ("window_id", "ascending")])
    return sorted(ordered["window_id"].to_pylist()[:k])


def ids_of(dataset):
    return sorted(row["window_id"] for row in dataset.take_all())


@pytest.mark.parametrize("k", [1, 137, 1000])
def test_top_k_is_exact_and_breaks_ties_by_the_lower_id(k):
    for count in (1, 7):
        rows = top_k(blocks(table(), count), "score", k)
        assert ids_of(rows) == first_by_score(table(), k)
        assert rows.schema().names == SCHEMA.names


class _Above:
    """Keeps rows by their id and gives them another column: of some blocks nothing is left."""

    def __call__(self, rows):
        kept = rows.filter(pc.greater(rows["window_id"], 990))
        return kept.append_column("more", pa.nulls(kept.num_rows, pa.int64()))


class _Doubled:
    def __call__(self, rows):
        return rows.append_column("twice", pc.multiply(rows["score"], pa.scalar(2.0, pa.float32())))


def test_top_k_of_blocks_of_which_some_are_empty():
    """Ray does not call a function for them, and their columns are those of before."""
    rows = map_tables(map_tables(blocks(table(), 17), _Above()), _Doubled())
    assert all(block.num_rows for block in ray.get(blocks_of(rows)))
    kept = top_k(rows, "twice", 5)
    assert ids_of(kept) == first_by_score(table().filter(pc.field("window_id") > 990), 5)


def test_every_group_gives_its_own_most_uncertain_rows():
    groups = np.random.default_rng(3).choice(4, 1000, p=[0.7, 0.2, 0.09, 0.01]).astype(np.int32)
    whole = table().append_column("cluster", pa.array(groups))
    wanted = {0: 50, 1: 120, 3: int((groups == 3).sum())}
    expected = [
        row for group, k in wanted.items() for row in first_by_score(whole.filter(groups == group), k)
    ]
    for count in (1, 7):
        found = threshold_each(blocks(whole, count), "score", wanted, "cluster")
        kept = take_each(blocks(whole, count), "score", found, "cluster")
        assert ids_of(kept) == sorted(expected)


def test_only_the_asked_split_is_read(tmp_path):
    splits = pa.array(["train", "test"] * 50)
    pq.write_table(pa.table({"split": splits, "n": np.arange(100)}), tmp_path / "part-00000.parquet")
    assert read_parts([tmp_path / "part-00000.parquet"], "test").sum("n") == sum(range(1, 100, 2))


@ray.remote(num_cpus=0)
def wrong_column():
    raise UserError("name another column")


class Refusing:
    """What a function of a stage may come upon, not as a generator, whose errors come by another way."""

    def __init__(self, found):
        self.found = found

    def __call__(self, rows):
        raise self.found if isinstance(self.found, Exception) else ray.get(self.found)


def free_cpus_come_back(seconds=30):
    """Whether nothing holds a CPU any more: what comes next in this cluster would wait for it."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"]:
            return True
        time.sleep(0.1)
    return False


FULL = OSError(28, "No space left on device")


@pytest.mark.parametrize("as_actor", [False, True])
@pytest.mark.parametrize(
    ("found", "said"),
    [
        (lambda: UserError("lower proxy.lr"), "lower proxy.lr"),
        (lambda: FULL, "[Errno 28] No space left on device: free some space"),
        (wrong_column.remote, "name another column"),
    ],
)
def test_what_the_user_can_mend_is_found_wherever_it_was_raised(as_actor, found, said):
    function, options = Refusing(found()), {}
    if as_actor:
        function = Refusing
        options = {"fn_constructor_args": (found(),), "compute": ActorPoolStrategy(size=1)}
    refused = map_tables(ray.data.from_arrow(table(10)), function, 0.5, **options)
    with pytest.raises(Exception, match=r"lower|space|column") as caught:
        refused.materialize()
    assert str(find_user_error(caught.value)).startswith(said)
    del caught, refused  # its actor lives as long as anything knows of it
    gc.collect()
    assert free_cpus_come_back()
