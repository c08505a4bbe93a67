"""Selection from a table ten times larger than the object store, on a cluster of its own."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bkray.config.preparation import Diversity
from bkray.runtime import cluster
from bkray.runtime.selection import _diverse
from bkray.runtime.stages import read_parts, top_k, write_parts
from bkray.selection import quotas

pytestmark = [pytest.mark.ray, pytest.mark.long]

STORE = 80 << 20
PARTS, ROWS, BYTES, KEPT = 22, 1000, 40_000, 1500  # 880 MB, of which 60 MB are kept
SHARES = [0.6, 0.3, 0.09, 0.01]  # of the rows that are alike; the last are fewer than their share of KEPT
SCHEMA = pa.schema(
    [
        pa.field("window_id", pa.int64()),
        pa.field("split", pa.string()),
        pa.field("uncertainty", pa.float32()),
        pa.field("embedding", pa.list_(pa.float16(), len(SHARES))),
        pa.field("tokens", pa.binary()),
    ]
)


def write_table(folder):
    """Parts of rows that do not compress; (ids, scores, groups) of all of them."""
    rng = np.random.default_rng(0)
    ids = rng.permutation(PARTS * ROWS).astype(np.int64)
    scores = rng.integers(0, 40, PARTS * ROWS).astype(np.float32)  # so that many rows share the threshold
    groups = rng.choice(len(SHARES), PARTS * ROWS, p=SHARES)
    embeddings = np.eye(len(SHARES), dtype=np.float16)[groups]
    for part in range(PARTS):
        own = slice(part * ROWS, (part + 1) * ROWS)
        offsets = pa.py_buffer(np.arange(ROWS + 1, dtype=np.int32) * BYTES)
        tokens = pa.Array.from_buffers(
            pa.binary(), ROWS, [None, offsets, pa.py_buffer(rng.bytes(ROWS * BYTES))]
        )
        embedding = pa.FixedSizeListArray.from_arrays(embeddings[own].ravel(), len(SHARES))
        table = pa.table([ids[own], ["train"] * ROWS, scores[own], embedding, tokens], schema=SCHEMA)
        pq.write_table(table, folder / f"part-{part:05d}.parquet", compression="none", use_dictionary=False)
    return ids, scores, groups


def first(ids, scores, count):
    return ids[np.lexsort((ids, -scores))[:count]]


def written(folder):
    return pq.read_table(folder, columns=["window_id"])["window_id"].to_numpy()


def test_a_table_ten_times_the_object_store_is_selected_from_and_the_driver_holds_none_of_it(tmp_path):
    """By uncertainty, and by uncertainty x diversity."""
    source, best, diverse = folders = [tmp_path / name for name in ("source", "best", "diverse")]
    for folder in folders:
        folder.mkdir()
    ids, scores, groups = write_table(source)
    assert sum(path.stat().st_size for path in source.iterdir()) > 10 * STORE
    command = [sys.executable, __file__, *folders]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
    assert finished.returncode == 0, finished.stderr[-3000:]
    np.testing.assert_array_equal(written(best), np.sort(first(ids, scores, KEPT)))
    wanted = quotas(dict(enumerate(np.bincount(groups).tolist())), KEPT)
    of_each = [first(ids[groups == group], scores[groups == group], k) for group, k in wanted.items()]
    assert len(set(map(len, of_each))) > 1, "a group has fewer rows than the others give"
    np.testing.assert_array_equal(written(diverse), np.sort(np.concatenate(of_each)))
    assert json.loads(finished.stdout.splitlines()[-1])["grown"] < STORE / 2


def main(source, best, diverse):
    """In a process of its own: select, and print by how many bytes the driver grew at most."""
    cluster._OBJECT_STORE_BYTES = STORE
    stage = SimpleNamespace(
        source=SimpleNamespace(parts=source, rows=PARTS * ROWS), recipe=SimpleNamespace(seed=0)
    )
    with cluster.cluster(cpus=2):
        read_parts(source[:1]).count()  # what Ray loads for its first dataset is none of the table
        before = largest()
        write_parts(top_k(read_parts(source), "uncertainty", KEPT), best, SCHEMA, ["window_id"])
        kept, *_ = _diverse(stage, Diversity(clusters=len(SHARES), sample=ROWS), KEPT)
        write_parts(kept, diverse, SCHEMA, ["window_id"])
        print(json.dumps({"grown": largest() - before}))


def largest():
    """The most bytes of memory that this process held; `ru_maxrss` is no less than that of its parent."""
    status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024


if __name__ == "__main__":
    main(sorted(Path(sys.argv[1]).iterdir()), *map(Path, sys.argv[2:]))
