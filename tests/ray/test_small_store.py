"""Selection from a table ten times larger than the object store, on a cluster of its own."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bkray.runtime import cluster
from bkray.runtime.stages import read_parts, top_k, write_parts

pytestmark = [pytest.mark.ray, pytest.mark.long]

STORE = 80 << 20
PARTS, ROWS, BYTES, KEPT = 20, 1000, 40_000, 1500  # 800 MB, of which 60 MB are kept
SCHEMA = pa.schema(
    [
        pa.field("window_id", pa.int64()),
        pa.field("uncertainty", pa.float32()),
        pa.field("tokens", pa.binary()),
    ]
)


def write_table(folder):
    """Parts of rows that do not compress; the (ids, scores) of all of them."""
    rng = np.random.default_rng(0)
    ids = rng.permutation(PARTS * ROWS).astype(np.int64)
    scores = rng.integers(0, 40, PARTS * ROWS).astype(np.float32)  # so that many rows share the threshold
    for part in range(PARTS):
        own = slice(part * ROWS, (part + 1) * ROWS)
        offsets = pa.py_buffer(np.arange(ROWS + 1, dtype=np.int32) * BYTES)
        tokens = pa.Array.from_buffers(
            pa.binary(), ROWS, [None, offsets, pa.py_buffer(rng.bytes(ROWS * BYTES))]
        )
        table = pa.table([ids[own], scores[own], tokens], schema=SCHEMA)
        pq.write_table(table, folder / f"part-{part:05d}.parquet", compression="none", use_dictionary=False)
    return ids, scores


def test_a_table_ten_times_the_object_store_is_selected_from_and_the_driver_holds_none_of_it(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    ids, scores = write_table(source)
    assert sum(path.stat().st_size for path in source.iterdir()) > 9.5 * STORE
    command = [sys.executable, __file__, source, target]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
    assert finished.returncode == 0, finished.stderr[-3000:]
    expected = ids[np.lexsort((ids, -scores))[:KEPT]]
    selected = pq.read_table(target, columns=["window_id"])["window_id"].to_numpy()
    np.testing.assert_array_equal(selected, np.sort(expected))
    assert json.loads(finished.stdout.splitlines()[-1])["grown"] < STORE / 2


def main(source, target):
    """In a process of its own: select, and print by how many bytes the driver grew at most."""
    cluster._OBJECT_STORE_BYTES = STORE
    with cluster.cluster(cpus=2):
        read_parts(source[:1]).count()  # what Ray loads for its first dataset is none of the table
        before = largest()
        write_parts(top_k(read_parts(source), "uncertainty", KEPT), target, SCHEMA, ["window_id"])
        print(json.dumps({"grown": largest() - before}))


def largest():
    """The most bytes of memory that this process held; `ru_maxrss` is no less than that of its parent."""
    status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024


if __name__ == "__main__":
    main(sorted(Path(sys.argv[1]).iterdir()), Path(sys.argv[2]))
