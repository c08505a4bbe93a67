import logging

import pytest

from bkray.runtime.artifacts import Artifact, write_manifest, writing


@pytest.fixture
def path(tmp_path):
    """A finished artifact with two files."""
    target = tmp_path / "stage-key"
    with writing(target) as directory:
        (directory / "part-00000.parquet").write_bytes(b"x" * 100)
        (directory / "part-00001.parquet").write_bytes(b"y" * 50)
        write_manifest(directory, {"key": "key", "rows": 3})
    return target


def test_a_finished_artifact_is_found_by_its_key(path):
    found = Artifact.find(path, "key")
    assert found.rows == 3
    assert [part.name for part in found.parts] == ["part-00000.parquet", "part-00001.parquet"]
    assert Artifact.find(path, "other") is None


@pytest.mark.parametrize("damage", ["removed", "truncated"])
def test_a_damaged_artifact_is_named_and_counts_as_absent(path, caplog, damage):
    part = path / "part-00001.parquet"
    part.unlink() if damage == "removed" else part.write_bytes(b"y" * 20)
    with caplog.at_level(logging.WARNING):
        assert Artifact.find(path, "key") is None
    assert "stage-key is damaged (part-00001.parquet)" in caplog.text


def test_what_fails_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), writing(tmp_path / "stage-key") as directory:
        assert (directory / "part-00000.parquet").write_bytes(b"x") / 0
    assert list(tmp_path.iterdir()) == []
