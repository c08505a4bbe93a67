"""The benchmark of transfer without its runs: what is chosen for which, what counts, a line of the table."""

import math
import re
import shlex
from pathlib import Path

import pytest
import yaml
from bench_transfer import Bench, Chosen, arguments, check_shared, sharing, spent_by
from transfer_table import Level, Runs, Spent, flops, table_of_levels, table_of_runs, together

from bkray.config import UserError, parse_recipe
from bkray.evaluation import Saving
from bkray.runtime.artifacts import Artifact
from bkray.runtime.pipeline import RunResult

ROOT = Path(__file__).parents[2]
LOW, HIGH = ("training.lr=1e-3",), ("training.lr=1e-2", "training.optimizer=muon")


def row(saving, shared=30.0, trials=(0.0, 0.0)):
    return [cell.strip() for cell in Level("it", 0.25, 1.8, saving, trials, shared).row().split("|")[1:-1]]


def test_a_line_has_the_saving_with_its_interval_over_the_seeds():
    saving = Saving((8.0, 12.0), (1.0, 3.0))
    assert row(saving, trials=(10.0, 18.0)) == [
        *("it", "0.25", "1.8000", "1.00e1", "2.00e0"),
        f"{math.sqrt(32):.2f} (4.00 to 8.00)",
        *("1.00", "0.31", "4"),
    ]


def test_one_seed_gives_no_interval():
    assert row(Saving((8.0,), (2.0,)))[4:6] == ["2.00e0", "4.00"]


def test_a_level_that_the_smallest_budget_reaches_is_shown_as_a_bound():
    cells = row(Saving((8.0, 12.0), (1.0, 3.0), at_most=True))
    assert cells[4:] == ["at most 2.00e0", f"≥ {math.sqrt(32):.2f} (≥ 4.00)", "≥ 5.00", "≥ 0.31", "at most 4"]


def test_a_level_that_a_seed_has_not_reached_has_no_saving():
    cells = row(Saving((8.0, 12.0), (1.0, None)))
    assert cells[4:] == ["not reached by 1 of 2 seeds", "", "", "", ""]


def test_what_costs_more_than_from_scratch_never_breaks_even():
    assert row(Saving((1.0,), (2.0,)))[-1] == "none"


def test_pretraining_is_paid_once_and_trials_for_each_target():
    levels = [Level("one", 0.25, 1.8, Saving((8.0,), (2.0,)), (1.0, 2.0), 30.0)] * 2
    assert together(levels) == Level("all 2", 0.25, None, Saving((16.0,), (4.0,)), (2.0, 4.0), 30.0)


def test_a_run_takes_what_was_best_at_the_nearest_share():
    chosen = Chosen({0.04: LOW, 0.16: HIGH})
    assert [chosen.at(share) for share in (0.01, 0.07, 0.09, 1.0)] == [LOW, LOW, HIGH, HIGH]


def test_both_sides_try_as_many_settings_at_as_many_shares(capsys):
    tries = ["--try", "training.lr=1e-3", "training.lr=1e-2 training.optimizer=muon"]
    with pytest.raises(SystemExit):
        arguments(["transfer.yaml", *tries])
    assert "[2, 1], from scratch [1, 1]" in capsys.readouterr().err
    with pytest.raises(SystemExit):  # one twice is one
        arguments(["transfer.yaml", *tries, "--scratch-try", "training.lr=1e-3", "training.lr=1e-3"])
    given = arguments(["transfer.yaml", *tries, "--scratch-try", "training.lr=1e-3", "training.lr=2e-3"])
    assert given.settings == [LOW, HIGH]


@pytest.mark.parametrize(
    ("training", "counted"),
    [({}, 1.0 + 2.0 + 4.0), ({"schedule": "plateau", "eval_every": 1}, 1.0 + 2.0 + 4.0 + 8.0)],
)
def test_looks_count_where_something_steers_by_them(training, counted):
    recipe = parse_recipe({"name": "it", "corpus": {"kind": "docstrings"}, "training": training})
    kinds = dict(zip(("training", "optimizer", "teacher", "validation"), (1.0, 2.0, 4.0, 8.0), strict=True))
    ledger = {kind: {"flops": spent, "tokens": 7, "seconds": spent} for kind, spent in kinds.items()}
    for kind in ("lost", "evaluation"):
        ledger[kind] = {"flops": 100.0, "tokens": 9, "seconds": 100.0}
    seconds = {"seconds": sum(cost["seconds"] for cost in ledger.values()), "details": {"unique_tokens": 5}}
    made = Artifact(Path(), {"stage": "model", "ledger": ledger, **seconds})
    prepared = Artifact(Path(), {"stage": "windows", "seconds": 3.0, "ledger": {}})
    run = RunResult(Path(), {"model": made, "windows": prepared}, None)
    assert spent_by(run, recipe) == Spent(counted, 7, 5, counted, 3.0)
    assert spent_by(run, recipe, every_look=True) == Spent(15.0, 7, 5, 15.0, 3.0)


def test_runs_are_shown_with_all_that_they_took_as_means_over_the_seeds():
    two = [Spent(8e12, 3000, 2000, 10.0, 4.0), Spent(1e13, 5000, 2000, 20.0, 4.0)]
    before = Runs("it", "before", [two[0] + two[1]])
    _, _, *lines = table_of_runs([[Runs("it", "tuned, 0.2 of an epoch", two, [1.5, 1.7])], [before]]).split(
        "\n"
    )
    assert lines == [
        "| it | tuned, 0.2 of an epoch | 4,000 | 2,000 | 9.00e12 | 15 | 4 | 1.6000 |",
        "| it | before | 8,000 | 4,000 | 1.80e13 | 30 | 8 |  |",
    ]


def test_several_targets_have_a_line_together_and_students_have_none():
    one, other = (Level(name, 1.0, 1.8, Saving((8.0,), (2.0,)), (0.0, 0.0), 3.0) for name in ("one", "other"))
    lines = table_of_levels([[one], [other]]).split("\n")[2:]
    assert lines == [one.row(), other.row(), together([one, other]).row()]
    assert table_of_levels([[one], [other]], students=True).split("\n")[2:] == lines[:2]


def test_flops_are_written_as_in_the_readme():
    assert [flops(number) for number in (3.384e12, 8.4e10, 0.5)] == ["3.38e12", "8.40e10", "5.00e-1"]


def test_the_commands_of_the_readme_are_taken_with_all_their_settings():
    text = (ROOT / "tests" / "benchmarks" / "README.md").read_text().replace("\\\n", " ")
    commands = re.findall(r"^python tests/benchmarks/bench_transfer.py (.*)", text, re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        given = arguments(shlex.split(command))
        _, corpus = given.targets[0].split("=", 1)
        of_target = (f"corpus={corpus}", f"pretrain.cleaning.leakage={{held_out_of: {{it: {corpus}}}}}")
        overrides = (*of_target, *given.overrides)
        bench = Bench(ROOT / given.file, Path("nowhere"), overrides, tuple(given.scratch))
        for setting in given.scratch_settings + given.settings:
            recipe = bench.from_scratch(1000, 1, setting).recipe
            assert (recipe.seed, recipe.training.tokens, recipe.model.d_model) == (1, 1000, 128)


@pytest.mark.parametrize("own", ["tokenizer.corpus=target", "cleaning.nearest={keep: 0.5}"])
def test_targets_that_would_each_pretrain_a_model_of_their_own_are_refused(tmp_path, own):
    for name in ("pool", "one", "two"):
        (tmp_path / f"{name}.jsonl").write_text('{"text": "%s"}\n' % (f"of {name} " * 50))
        corpus = {"kind": "jsonl", "path": str(tmp_path / f"{name}.jsonl")}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({"name": name, "corpus": corpus}))
    phases = [{"name": "pretrain", "recipe": "pool.yaml"}, {"name": "target", "recipe": "one.yaml"}]
    (tmp_path / "transfer.yaml").write_text(yaml.safe_dump({"name": "t", "phases": phases}))

    def benches(*overrides):
        for name in ("one", "two"):
            target = (f"name={name}", f"corpus.path={tmp_path / name}.jsonl", *overrides)
            yield Bench(tmp_path / "transfer.yaml", tmp_path, target)

    same = f"{{kind: jsonl, path: {tmp_path}/two.jsonl}}"
    leaks = sharing("pretrain", {name: same.replace("two", name) for name in ("one", "two")}, [0])
    shared = own.replace("=target", f"={same}").replace("0.5", f"0.5, to: {same}")
    check_shared(list(benches(leaks, f"pretrain.{shared}")))
    with pytest.raises(UserError, match="one and two would not share a pretrained model"):
        check_shared(list(benches(leaks, f"pretrain.{own}")))
