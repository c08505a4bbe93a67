"""A student that starts from some of its teacher's layers: compress, then a run from the copy."""

import io

import pytest
import torch
from rich.console import Console

from bkray.config import UserError, load_recipe
from bkray.reporting.progress import Progress
from bkray.runtime.compression import compress
from bkray.runtime.pipeline import run_pipeline
from bkray.training import load_model

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("two_cpus")]

PLAIN = ["difficulty=null", "selection=null", "curriculum=null", "proxy=null", "sampling=null"]
PLAIN += ["augmentation=[]", "training.trackers=[]", "training.skip=null", "training.average=null"]
PLAIN += ["training.tokens=4000", "training.workers=1"]


def test_a_student_has_the_layers_of_the_copy_and_its_teacher_is_asked(small, tmp_path):
    quiet, shown = Progress(Console(quiet=True)), Progress(Console(file=io.StringIO(), width=400))
    deep = [*PLAIN, "name=deep", "model={kind: resnet_bk, d_model: 16, n_layers: 3}"]
    deep = run_pipeline(load_recipe(small, deep), tmp_path, progress=quiet).folder
    with pytest.raises(UserError, match="layers:0 of 3: give a number from 1 to 2"):
        compress(deep, ("layers:0",), progress=quiet)
    compress(deep, ("layers:2", "layers:2+prune:0.5+int8"), progress=quiet)
    smallest = load_model(deep / "compressed" / "layers-2+prune-0.5+int8")
    assert len(smallest.blocks) == 2
    assert smallest.blocks[1].feed_forward.up.out_features == 2 * 16  # of 64
    copy = deep / "compressed" / "layers-2"
    taught = f"training.distillation={{teachers: ['{deep / 'model'}'], weight: 0.5}}"
    start = [f"training.start_from={copy}", "training.lr=1e-9", "model=null", "tokenizer={}"]
    recipe = load_recipe(small, [*PLAIN, "name=student", *start, taught])
    done = run_pipeline(recipe, tmp_path, progress=shown)
    teacher, student = load_model(deep / "model"), load_model(done.folder / "model")
    assert len(student.blocks) == 2
    for own, theirs in ((0, 0), (1, 2)):
        before, after = teacher.blocks[theirs].state_dict(), student.blocks[own].state_dict()
        for name, value in after.items():
            torch.testing.assert_close(value, before[name], atol=1e-6, rtol=0)
    assert done.summary["ledger"]["by_kind"]["teacher"]["flops"] > 0
    # of what the copy has learnt is known what is known of the whole model
    assert done.summary["seen_before"]["lost"] is None
