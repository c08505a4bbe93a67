"""The way in parts: each command, and the script of its name, goes as far as it says and no further."""

import pytest

pytestmark = [pytest.mark.end_to_end, pytest.mark.ray, pytest.mark.usefixtures("two_cpus")]


def test_every_part_goes_as_far_as_it_says(bkray_here, script, small, tmp_path):
    run = tmp_path / "out" / "small"
    arguments = (small, "training.workers=1", "--out", run.parent, "--cpus", 2)

    def there():
        stages = {path.name.rpartition("-")[0] for path in run.glob("artifacts/[!.]*")}
        return {"training_set", "evaluation"} & stages | {
            path.name for path in run.iterdir() if path.name in {"model", "summary.json", "report.html"}
        }

    script("prepare", *arguments)
    assert there() == {"training_set"}
    assert "already complete, nothing to do" in bkray_here("prepare", *arguments).stderr
    assert bkray_here("train", *arguments).returncode == 0
    assert there() == {"training_set", "model"}
    assert "already complete, nothing to do" in script("train", *arguments)
    script("evaluate", *arguments)
    assert there() == {"training_set", "model", "evaluation", "summary.json", "report.html"}
    assert "already complete, nothing to do" in bkray_here("evaluate", *arguments).stderr
