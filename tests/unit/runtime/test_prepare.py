"""What the tasks of the first stages do with shards. No cluster needed."""

import json

import pyarrow as pa
import pyarrow.parquet as pq

from bkray.config import parse_recipe
from bkray.corpus import list_shards
from bkray.runtime.prepare import _gather_rejects, _ReadShards


def test_shards_are_read_again_after_their_rejects_are_gathered(tmp_path):
    """As Ray does where it has lost a block while the stage goes on."""
    rows = [json.dumps({"text": f"text {number}"}) for number in range(20)]
    for name, broken in (("a", ["{", '{"title": "x"}']), ("b", []), ("c", ["{"])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join([*broken, *rows]))
    recipe = parse_recipe({"name": "t", "corpus": {"kind": "jsonl", "path": str(tmp_path)}})
    folder, target = tmp_path / ".rejects", tmp_path / "rejects.parquet"
    folder.mkdir()
    read = _ReadShards(list_shards(recipe.corpus), recipe, folder)
    numbers = pa.table({"shard": [0, 1, 2]})
    before = pa.concat_tables(read(numbers))
    assert _gather_rejects(folder, target) == {"malformed JSON": 2, "no text field": 1}
    assert pa.concat_tables(read(numbers)) == before
    gathered = pq.read_table(target)
    assert gathered["source"].to_pylist() == ["a.jsonl", "a.jsonl", "c.jsonl"]
    assert gathered["ordinal"].to_pylist() == [0, 1, 0]


def test_no_rejects_are_an_empty_table(tmp_path):
    (tmp_path / ".rejects").mkdir()
    assert not _gather_rejects(tmp_path / ".rejects", tmp_path / "rejects.parquet")
    assert pq.read_table(tmp_path / "rejects.parquet").num_rows == 0
