import pytest
import yaml

from bkray.config import UserError, apply_overrides, dump_yaml, load_recipe, parse_recipe

BASE = {"name": "t", "corpus": {"kind": "docstrings"}}
TO_AND_FRO = {"kind": "apertium", "forth": "eng-spa", "back": "spa-eng"}


def message(values):
    with pytest.raises(UserError) as caught:
        parse_recipe(values)
    return str(caught.value)


def test_every_fault_is_reported_at_once_with_the_nearest_known_key():
    text = message(
        {
            **BASE,
            "trainng": {},
            "training": {"lrr": 1, "lr": -1, "optimizer": "mun"},
            "augmentation": [{"kind": "deletion", "probabilty": 0.3}],
        }
    )
    assert "trainng: unknown key; did you mean training?" in text
    assert "training.lrr: unknown key; did you mean lr?" in text
    assert "training.optimizer: 'mun' is unknown; did you mean muon?" in text
    assert "training.lr: Input should be greater than 0, but it is -1" in text
    assert "augmentation.0.probabilty: unknown key; did you mean probability?" in text


@pytest.mark.parametrize(
    ("values", "faults"),
    [
        (
            {"trainng": {"workers": 3}, "proxy": {}},
            ["trainng: unknown", "training.workers 3", "proxy has no"],
        ),
        ({"training": {"optimiser": "adamw", "workers": 3}}, ["optimiser: unknown", "training.workers 3"]),
        (
            {"augmentation": [{"kind": "swop"}, {"kind": "swap"}, {"kind": "x"}]},
            ["'swop'", "'x'", "swap twice"],
        ),
        ({"training": {"optimizer": "muom"}, "proxy": {}}, ["did you mean muon?", "proxy has no effect"]),
        ({"training": {"lr": -1}, "difficulty": {"kind": "rarity"}}, ["it is -1", "without a curriculum"]),
        ({"whatever": 1, "proxy": {}}, ["whatever: unknown key", "proxy has no effect"]),
        (
            {"training": {"batch_tokens": 1000, "lrr": 1}, "proxy": {}},
            ["multiple of window 256", "lrr: unknown", "proxy has no effect"],
        ),
        (
            {
                "model": {
                    **{
                        "kind": "resnet_bk",
                        "d_model": 30,
                        "n_heads": 4,
                        "mixer": "potential",
                        "sparsity": {},
                    },
                    **{"experts": {}, "feed_forward_width": 64, "attention": {"layers": [9]}},
                }
            },
            ["multiple of n_heads 4", "with n_layers 4 the last", "sparsity has no effect", "beside experts"],
        ),
    ],
)
def test_what_does_not_fit_together_is_named_beside_unknown_keys_and_wrong_values(values, faults):
    text = message({**BASE, **values})
    for fault in faults:
        assert fault in text
    assert len(text.splitlines()) == 1 + len(faults)


def test_what_is_misspelt_is_not_missing_as_well():
    text = message({"name": "t", "corpuss": {"kind": "text", "pth": "x"}, "proxy": {}})
    assert "corpuss: unknown key; did you mean corpus?" in text
    assert "corpus.pth: unknown key; did you mean path?" in text
    assert "proxy has no effect" in text
    assert len(text.splitlines()) == 4


def test_what_was_left_out_is_not_said_to_fit_nothing():
    wrong = {"curriculum": {"start": 7}, "difficulty": {"kind": "rarity"}, "proxy": {}, "window": 100}
    assert len(message({**BASE, **wrong}).splitlines()) == 4
    wrong["window"] = "wide"  # its default would not fit batch_tokens
    text = message({**BASE, **wrong, "training": {"batch_tokens": 300}})
    assert "window" in text
    assert "multiple" not in text


def test_an_unknown_kind_names_the_nearest():
    assert "corpus.kind: 'docstring' is unknown; did you mean docstrings?" in message(
        {"name": "t", "corpus": {"kind": "docstring"}}
    )


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"difficulty": {"kind": "rarity"}}, "difficulty has no effect without a curriculum"),
        ({"proxy": {}}, "proxy has no effect"),
        ({"augmentation": [{"kind": "swap"}, {"kind": "swap", "share": 0.5}]}, "names kind swap twice"),
        ({"augmentation": [{"kind": "deletion", "min_words": 0}]}, "or equal to 1, but it is 0"),
        (
            {"augmentation": [{"kind": "back_translation", "lowest": 0.9, "highest": 0.5}]},
            "lowest 0.9 must be below highest 0.5",
        ),
        (
            {"augmentation": [{"kind": "back_translation", "translator": "apertum"}]},
            "'apertum' is unknown; did you mean apertium?",
        ),
        ({"training": {"batch_tokens": 1000}}, "must be a multiple of window 256"),
        ({"sampling": {"weight": "loss", "share": 1, "start": 0, "end": 0}}, "is plain shuffling: remove it"),
        ({"training": {"skip": {"share": 0.5, "floor": 0.5}}}, "floor 0.5 must be below 1 - share = 0.5"),
        ({"training": {"skip": {"by": "random", "floor": 0.2}}}, "floor has no effect with by random"),
        ({"training": {"skip": {"share": 0.02}}}, "skips none of a batch of 16 windows: raise it"),
        ({"training": {"workers": 3}}, "training.workers 3 cannot share evenly"),
        ({"training": {"accumulate": 9}}, "training.accumulate 9 is more than the 8 windows"),
        ({"training": {"workers": 1, "gradient_compression": "fp16"}}, "a single worker sends no gradients"),
        ({"training": {"workers": 2, "gpu_share": 0.5}}, "several workers take a GPU each"),
        (
            {"training": {"parallel": "fsdp2", "bucket_mb": 1, "gradient_as_bucket_view": False}},
            "training.bucket_mb, training.gradient_as_bucket_view: training.parallel fsdp2 sends gradients",
        ),
        (
            {"training": {"bucket_mb": 1, "gradient_compression": "powersgd"}},
            "training.bucket_mb has no effect: training.gradient_compression powersgd",
        ),
        ({"training": {"parallel": "fsdp2", "compile": True}}, "is not one graph: remove it or set"),
        ({"training": {"lr": float("inf")}}, "training.lr: Input should be a finite number"),
        ({"selection": {"kind": ["entropy"]}}, "selection.kind"),
        ({"sampling": {"weight": {"loss": 1}}}, "sampling.weight"),
        (
            {"training": {"parallel": "fsdp2", "gradient_cache": {"kind": "every"}}},
            "training.gradient_cache cannot take training.parallel fsdp2, which keeps no whole parameter",
        ),
        (
            {"training": {"parallel": "fsdp2", "start_from": "m", "freeze": 1}},
            "training.freeze cannot take training.parallel fsdp2, which keeps no whole parameter",
        ),
        (
            {"training": {"parallel": "fsdp2", "token_selection": {"kind": "random", "keep": 0.5}}},
            "training.token_selection cannot take training.parallel fsdp2, which keeps no whole parameter",
        ),
        ({"model": {"kind": "resnet_bk", "d_model": 100}}, "d_model 100 must be a multiple of n_heads 16"),
        ({"model": {"kind": "transformer", "d_model": 20, "n_heads": 4}}, "heads of odd width"),
        ({"model": {"kind": "resnet_bk", "mixer": "gated", "n_heads": 4}}, "no effect with mixer gated"),
        ({"model": {"kind": "resnet_bk", "halting": {"first_layer": 4}}}, "n_layers 4 the last is 3"),
        (
            {"model": {"kind": "resnet_bk", "halting": {}, "attention": {"layers": [1]}}},
            "move attention below it or raise halting.first_layer",
        ),
        (
            {"model": {"kind": "resnet_bk", "halting": {}, "multiscale": {"layers": [1]}}},
            "halting and multiscale exclude each other: remove one of the two",
        ),
        ({"model": {"kind": "resnet_bk", "multiscale": {"layers": [4]}}}, "n_layers 4 the last is 3"),
        ({"model": {"kind": "resnet_bk", "multiscale": {"layers": [1], "factor": 1}}}, "multiscale.factor"),
        ({"model": {"kind": "resnet_bk", "halting": {"threshold": 0.9999}}}, "halting.threshold"),
        ({"model": {"kind": "resnet_bk", "experts": {"count": 2, "top_k": 3}}}, "at most count 2"),
        (
            {"model": {"kind": "resnet_bk", "experts": {"count": 2, "top_k": 2, "balance": 0.1}}},
            "balance has no effect with top_k 2",
        ),
        (
            {"model": {"kind": "resnet_bk", "mixer": "diagonal", "sparsity": {}}},
            "sparsity has no effect with mixer diagonal: remove it or take mixer spectral or gated",
        ),
        (
            {
                "model": {
                    "kind": "resnet_bk",
                    "n_layers": 1,
                    "sparsity": {},
                    "attention": {"layers": [0], "n_heads": 4},
                }
            },
            "sparsity has no effect where attention takes every layer",
        ),
        (
            {"model": {"kind": "resnet_bk", "experts": {}, "feed_forward_width": 64}},
            "no effect beside experts",
        ),
        (
            {"model": {"kind": "resnet_bk", "halting": {}}, "training": {"compile": True}},
            "compile cannot take model.halting",
        ),
        (
            {"corpus": {"kind": "docstrings", "test": 0.4, "validation": 0.2}},
            "corpus: validation 0.2 and test 0.4 together leave less than half for training",
        ),
        (
            {"cleaning": {"nearest": {"to": {"kind": "text", "path": "x", "test": 0.48}, "keep": 0.2}}},
            "cleaning.nearest.to: validation 0.05 and test 0.48 together leave less than half",
        ),
        (
            {"cleaning": {"leakage": {"held_out_of": {"a": {"kind": "text", "path": "x", "test": 0.48}}}}},
            "cleaning.leakage.held_out_of.a: validation 0.05 and test 0.48 together leave less than half",
        ),
        (
            {"cleaning": {"near": {"threshold": 0.02}}},
            "cleaning.near.threshold: Input should be greater than or equal to 0.03, but it is 0.02",
        ),
        (
            {"cleaning": {"quality": {"sample": {"kind": "text", "path": "x", "test": 0.1}}}},
            "cleaning.quality.sample: test has no effect: no split is drawn from the sample",
        ),
        (
            {"corpus": {"kind": "text", "path": "x", "document_start": "^=", "document": "line"}},
            "document has no effect beside document_start",
        ),
        (
            {"difficulty": {"kind": "reducible"}, "curriculum": {}},
            "kind reducible takes the loss of a reference model off: set difficulty.reference",
        ),
        (
            {
                "difficulty": {"kind": "reducible", "reference": "./runs/m/"},
                "proxy": {"folder": "runs/m"},
                "curriculum": {},
            },
            "difficulty.reference ./runs/m/ is the model of proxy.folder, so that every score would be 0",
        ),
        (
            {"difficulty": {"kind": "loss", "reference": "m"}, "curriculum": {}},
            "difficulty.reference has no effect on kind loss: remove it",
        ),
        (
            {"selection": {"kind": "entropy", "passes": 5}},
            "selection.passes has no effect on kind entropy: remove it",
        ),
        (
            {"selection": {"kind": "random", "dropout": 0.2}},
            "selection.dropout has no effect on kind random: remove it",
        ),
        (
            {"training": {"on_divergence": "skip", "gradient_compression": "powersgd"}},
            "on_divergence skip cannot take training.gradient_compression powersgd",
        ),
        (
            {"training": {"schedule": {"kind": "loss_trend", "restart_every": 20}}},
            "restart_every 20 must be above the 24 steps of the warm-up",
        ),
        (
            {"window": 32, "model": {"kind": "resnet_bk", "multiscale": {"layers": [1], "factor": 17}}},
            "multiscale.factor 17 is above half of the 32 tokens of the shortest window",
        ),
        (
            {"model": {"kind": "resnet_bk", "koopman": {}}, "training": {"length": {"start": 1}}},
            "training.length.start 1: model.koopman predicts the state of the next position",
        ),
        (
            {"window": 32, "model": {"kind": "resnet_bk", "attention": {"layers": [1], "window": 33}}},
            "model.attention.window 33 is above window 32",
        ),
        (
            {
                "window": 32,
                "model": {
                    "kind": "resnet_bk",
                    "attention": {"layers": [1], "window": 9},
                    "multiscale": {"layers": [1, 2], "factor": 4},
                },
            },
            "model.attention.window 9 is above the 8 blocks of multiscale in window 32, more than there are",
        ),
        (
            {"model": {"kind": "resnet_bk", "mixer": "potential", "longest_memory": 2048}},
            "longest_memory 2048: mixer potential starts with at most 1000 sites: lower it or take mixer",
        ),
        ({"model": {"kind": "resnet_bk", "longest_memory": 1e7}}, "model.longest_memory"),
        (
            {"training": {"schedule": "plateau", "tokens": 4096 * 200}},
            "plateau cannot lower the rate: 200 steps have 3 looks at the validation split before the last",
        ),
        (
            {"training": {"schedule": "loss_trend", "tokens": 4096 * 40}},
            "loss_trend cannot move the rate: 40 steps have 3 lines of the log before the last",
        ),
        (
            {
                "training": {"compile": True, "activation_checkpointing": True},
                "model": {"kind": "resnet_bk", "experts": {}, "sparsity": {}},
            },
            "activation_checkpointing cannot take model.experts and model.sparsity",
        ),
        (
            {"selection": {"kind": "random", "diversity": {"clusters": 100, "sample": 50}}},
            "selection.diversity: clusters 100 cannot be made from sample 50",
        ),
        (
            {"selection": {"kind": "random", "diversity": {"clusters": 100_000, "sample": 200_000}}},
            "selection.diversity.clusters: Input should be less than or equal to 1024, but it is 100000",
        ),
        (
            {"augmentation": [{"kind": "back_translation", "translator": TO_AND_FRO | {"back": "fra-eng"}}]},
            "translator: back fra-eng does not lead back from forth eng-spa: set it to spa-eng",
        ),
        (
            {"augmentation": [{"kind": "back_translation", "translator": TO_AND_FRO | {"back": "spa-fra"}}]},
            "translator: back spa-fra does not lead back from forth eng-spa: set it to spa-eng",
        ),
        ({"selection": {"kind": "random", "keep": 1.0}}, "keep 1 selects nothing, all windows stay"),
        ({"curriculum": {"start": 1.0}}, "start 1 is plain shuffling"),
        (
            {"selection": {"kind": "entropy"}, "proxy": {"folder": "m", "d_model": 32, "lr": 0.1}},
            "proxy.d_model, proxy.lr: no effect beside proxy.folder, which is trained: remove one",
        ),
        (
            {"selection": {"kind": "entropy"}, "proxy": {"folder": "m"}, "tokenizer": {"vocab_size": 300}},
            "tokenizer.vocab_size has no effect beside proxy.folder, whose tokenizer is taken: remove it",
        ),
        (
            {"training": {"start_from": "m"}, "tokenizer": {"corpus": {"kind": "docstrings"}}},
            "tokenizer.corpus has no effect beside training.start_from, whose tokenizer is taken: remove it",
        ),
        (
            {"training": {"start_from": "m"}, "tokenizer": {"vocab_size": 300}},
            "training.start_from, whose tokenizer is taken: remove it, or set training.start_vocabulary to "
            "overlap",
        ),
        (
            {"selection": {"kind": "random"}, "proxy": {"folder": "m"}},
            "proxy has no effect: neither difficulty (loss, perplexity, entropy, reducible)",
        ),
    ],
)
def test_impossible_and_inert_settings_are_refused(change, fault):
    assert fault in message({**BASE, **change})


def test_what_a_curriculum_and_a_model_score_need_is_implied():
    recipe = parse_recipe({**BASE, "curriculum": {}, "selection": {"kind": "entropy"}})
    assert recipe.difficulty is not None
    assert recipe.difficulty.kind == "compression"
    assert recipe.proxy is not None
    assert parse_recipe({**BASE, "selection": {"kind": "random"}}).proxy is None
    assert parse_recipe({**BASE, "selection": {"kind": "random", "diversity": {}}}).needs_proxy
    assert parse_recipe({**BASE, "curriculum": {}, "difficulty": {"kind": "sentence_length"}}).proxy is None
    for kind in ("perplexity", "entropy"):
        scored = parse_recipe({**BASE, "curriculum": {}, "difficulty": {"kind": kind}})
        assert scored.trains_proxy
        assert scored.proxy is not None
    given = parse_recipe({**BASE, "selection": {"kind": "entropy"}, "proxy": {"folder": "m"}})
    assert given.needs_proxy
    assert not given.trains_proxy
    assert parse_recipe({**BASE, "sampling": {"weight": "entropy"}}).proxy is not None
    assert parse_recipe({**BASE, "sampling": {"weight": "rarity"}}).proxy is None


def test_overrides_set_nested_values_and_whole_sections_without_touching_the_original():
    changed = apply_overrides(
        BASE, ["training.lr=3e-4", "corpus={kind: text, path: a.txt}", "selection=null"]
    )
    recipe = parse_recipe(changed)
    assert recipe.training.lr == 3e-4
    assert recipe.corpus.kind == "text"
    assert BASE == {"name": "t", "corpus": {"kind": "docstrings"}}
    with pytest.raises(UserError, match=r"(?s)must read key=value.*not valid YAML.*has no keys of its own"):
        apply_overrides(BASE, ["training.lr", "seed=[", "name.first=a"])


def test_overrides_that_cannot_be_set_hide_no_fault_of_the_recipe(tmp_path):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**BASE, "windw": 128}))
    with pytest.raises(UserError, match=r"(?s)must read key=value.*lrr: unknown key.*did you mean window\?"):
        load_recipe(tmp_path / "recipe.yaml", ["training.lr", "training.lrr=1"])


def test_a_wrong_path_suggests_the_file_beside_it(tmp_path):
    (tmp_path / "quickstart.yaml").write_text(yaml.safe_dump(BASE))
    with pytest.raises(UserError, match=r"no such file; did you mean .*quickstart\.yaml"):
        load_recipe(tmp_path / "quickstat.yaml")


@pytest.mark.parametrize("text", ["a: [", "- 1", ""])
def test_what_is_no_recipe_is_refused(tmp_path, text):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"bad\.yaml"):
        load_recipe(path)


def test_a_recipe_calls_no_foreign_code(tmp_path):
    made, path = tmp_path / "made", tmp_path / "bad.yaml"
    path.write_text(f"name: !!python/object/apply:os.mkdir [{made}]")
    with pytest.raises(UserError, match=r"bad\.yaml: not valid YAML"):
        load_recipe(path)
    assert not made.exists()


@pytest.mark.parametrize(
    "change",
    [
        {"curriculum": {"adjuster": {}}, "selection": {"kind": "margin", "keep": 0.5}},
        {"selection": {"kind": "variation_ratio", "passes": 4, "diversity": {"clusters": 9}}},
        {"difficulty": {"kind": "reducible", "reference": "m"}, "curriculum": {}, "proxy": {"folder": "n"}},
        {"model": {"kind": "resnet_bk", "mixer": "gated"}},
        {"training": {"skip": {"by": "random"}}, "sampling": {"weight": "loss"}},
        {"corpus": {"kind": "text", "path": "x", "document_start": "^="}},
        {"augmentation": [{"kind": "back_translation", "translator": TO_AND_FRO | {"forth": "eng-spa_AR"}}]},
        {"cleaning": {"near": {}, "quality": {"sample": {"kind": "text", "path": "x"}}}},
    ],
)
def test_the_dumped_recipe_loads_to_the_same_recipe(tmp_path, change):
    recipe = parse_recipe({**BASE, **change})
    (tmp_path / "resolved.yaml").write_text(dump_yaml(recipe))
    assert load_recipe(tmp_path / "resolved.yaml") == recipe


def test_steps_see_at_least_the_asked_tokens():
    recipe = parse_recipe({**BASE, "training": {"tokens": 10_000, "batch_tokens": 4096}})
    assert recipe.batch_windows == 16
    assert recipe.steps == 3


def test_a_tracker_named_twice_is_refused():
    assert "wandb is named more than once" in message({**BASE, "training": {"trackers": ["wandb", "wandb"]}})


@pytest.mark.parametrize(
    "values",
    [
        {"model": {"kind": "resnet_bk", "mixer": "gated"}},
        {"corpus": {"kind": "text", "path": "a", "document_start": "^= "}},
    ],
)
def test_what_is_written_with_every_default_is_read_again(tmp_path, values):
    recipe = parse_recipe({"name": "t", "corpus": {"kind": "docstrings"}, **values})
    (tmp_path / "resolved.yaml").write_text(dump_yaml(recipe))
    assert load_recipe(tmp_path / "resolved.yaml") == recipe


def test_a_section_under_a_name_of_the_users_choice_is_checked_like_any_other():
    corpora = {"mine": {"kind": "text", "path": "a", "pth": "b"}, "other": {"kind": "txt"}}
    values = {
        "name": "t",
        "corpus": {"kind": "docstrings"},
        "cleaning": {"leakage": {"held_out_of": corpora}},
    }
    with pytest.raises(UserError) as caught:
        parse_recipe(values)
    assert "held_out_of.mine.pth: unknown key; did you mean path?" in str(caught.value)
    assert "held_out_of.other.kind: 'txt' is unknown; did you mean text?" in str(caught.value)


def test_one_cycle_cannot_rise_in_one_step():
    training = {"tokens": 8192, "batch_tokens": 4096, "schedule": "one_cycle", "warmup": 0.5}
    assert "training.warmup 0.5 is one of 2 steps" in message({**BASE, "training": training})
    parse_recipe({**BASE, "training": {**training, "warmup": 0.25}})
