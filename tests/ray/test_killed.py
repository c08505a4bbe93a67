"""A process is killed in one stage after the other; its work is done again to the same bytes.

Those of scoring and training: test_pipeline.py.
"""

import shutil

import pytest
from rich.console import Console

from bkray.config import load_recipe
from bkray.reporting.progress import Progress
from bkray.runtime.pipeline import run_pipeline
from tests.kills import killing

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("two_cpus")]

KILLED = {
    "documents": "ray::MapBatches(_ReadShards)",
    "decontaminated": "ray::MapBatches(_Leaks)",
    "deduplicated": "ray::MapBatches(_twins)",
    "filtered": "ray::_fit",
    "nearest": "ray::MapBatches(_Distance)",
    "tokenizer": "ray::_train_tokenizer",
    "augmented": "ray::MapWorker(MapBatches(_Augment)).submit",
    "windows": "ray::MapBatches(_PackParts)",
    "proxy": "ray::train_proxy",
    "selected": "ray::MapBatches(_Take)",
    "training_set": "ray::_write_blocks",
    "held_out_scores": "ray::_score_held_out",
}
LITTLE = ("training.workers=1", "training.tokens=4000")


def prepared(recipe, out):
    recipe, progress = load_recipe(recipe, LITTLE), Progress(Console(quiet=True))
    return run_pipeline(recipe, out, until="held_out_scores", progress=progress).artifacts


def contents(artifacts):
    """The bytes of every file that the stages wrote, by path; trained models' config.json holds times.

    What later ones put beside them, a copy of the tokens to read by position, is left out: it is not made
    again where they are done.
    """
    files = [made.path / name for made in artifacts.values() for name in made.manifest["files"]]
    kept = [path for path in files if path.name != "config.json"]
    return {f"{path.parent.name}/{path.name}": path.read_bytes() for path in kept}


def test_what_a_killed_process_did_is_done_again_in_every_stage(filtering, tmp_path):
    """A task may end before it is found: its stage is then made once more."""
    usual = prepared(filtering, tmp_path / "usual")
    filters = [name for name, made in usual.items() if made.manifest["removed"]]
    assert filters == ["decontaminated", "deduplicated", "filtered", "nearest", "selected"]
    out, missed = tmp_path / "out", list(KILLED)

    def at_work(killed):
        stages = [stage for stage in missed if list(out.glob(f"small/artifacts/.partial-{stage}-*"))]
        return [KILLED[stage] for stage in stages if KILLED[stage] not in killed]

    for _ in range(10):
        with killing(at_work) as killed:
            other = prepared(filtering, out)
        assert contents(other) == contents(usual)
        missed = [stage for stage in missed if KILLED[stage] not in killed]
        if not missed:
            return
        for stage in missed:
            shutil.rmtree(other[stage].path)
    raise AssertionError(f"no process was found at work in {missed}")
