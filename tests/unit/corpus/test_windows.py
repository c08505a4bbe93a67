"""What is read from the part files of an artifact."""

import pyarrow as pa
import pyarrow.parquet as pq

from bkray.corpus.windows import count_values


def test_values_are_counted_over_parts_and_row_groups(tmp_path):
    splits = [["train", "test", "train"], [], ["validation"] * 70_000 + ["train"] * 5]
    parts = [tmp_path / f"part-{number}.parquet" for number in range(3)]
    for part, values in zip(parts, splits, strict=True):
        table = pa.table({"id": range(len(values)), "split": pa.array(values, pa.string())})
        pq.write_table(table, part, row_group_size=1000)
    assert count_values(parts, "split") == {"train": 7, "test": 1, "validation": 70_000}
    assert count_values([], "split") == {}
