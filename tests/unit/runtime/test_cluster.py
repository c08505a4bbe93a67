import pytest

from bkray.config import UserError, parse_recipe
from bkray.runtime import cluster

RECIPE = parse_recipe({"name": "r", "corpus": {"kind": "docstrings"}})


def test_a_run_that_fits_is_let_through(tmp_path):
    cluster.check_budget(RECIPE, 2, tmp_path / "not" / "yet", 1 << 20)


@pytest.mark.parametrize(
    ("cpus", "corpus_bytes", "message"),
    [(1, 0, "2 x 1 CPU = 2 CPUs, but there are 1"), (2, 1 << 60, "of disk for artifacts and checkpoints")],
)
def test_too_few_cpus_and_too_little_disk_are_refused_with_the_arithmetic(
    tmp_path, cpus, corpus_bytes, message
):
    with pytest.raises(UserError, match=message):
        cluster.check_budget(RECIPE, cpus, tmp_path, corpus_bytes)


def test_too_little_memory_is_refused_with_the_arithmetic(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "available_memory", lambda: 1 << 30)
    with pytest.raises(UserError, match="3,092 MiB of memory, but 1,024 MiB are available"):
        cluster.check_budget(RECIPE, 2, tmp_path, 0)


def test_a_model_that_no_memory_holds_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "available_memory", lambda: 64 << 30)
    monkeypatch.setattr(cluster, "disk_bytes", lambda recipe, corpus_bytes: 0)
    model = {"kind": "resnet_bk", "d_model": 4096, "n_layers": 32, "feed_forward_width": 16384}

    def check(**training):
        recipe = {**RECIPE.model_dump(mode="json"), "model": model, "training": training}
        cluster.check_budget(parse_recipe(recipe), 2, tmp_path, 0)

    with pytest.raises(UserError, match=r"2 workers x 50,176 MiB \(model and optimizer at least 49,152 MiB"):
        check()
    check(parallel="fsdp2")  # each holds a half
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    check()


def test_what_the_activation_cache_may_hold_is_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "available_memory", lambda: 8 << 30)
    monkeypatch.setattr(cluster, "disk_bytes", lambda recipe, corpus_bytes: 0)

    def check(tokens=1 << 30, **cache):
        training = {"start_from": "m", "freeze": 1, "tokens": tokens, "activation_cache": cache}
        recipe = {**RECIPE.model_dump(mode="json"), "training": training, "tokenizer": {}}
        cluster.check_budget(parse_recipe(recipe), 2, tmp_path, 0)

    message = r"2 workers x 4,096 MiB .*at least .* MiB, activation cache 3,0\d\d MiB\) .*max_bytes lower"
    with pytest.raises(UserError, match=message.replace("4,096", r"4,\d\d\d")):
        check(max_bytes=3 << 30)
    check()
    check(max_bytes=3 << 30, where="disk")
    check(max_bytes=10**12, tokens=1 << 20)  # more than it could ever hold


LARGE = {"kind": "resnet_bk", "d_model": 1024, "n_layers": 12, "feed_forward_width": 16384}
WEIGHTS = 4 * 12 * 2 * 1024 * 16384
"""Bytes of its feed-forward layers: 1.5 GiB."""


def of_large(**training):
    return parse_recipe({**RECIPE.model_dump(mode="json"), "model": LARGE, "training": training})


def test_what_the_gradient_cache_may_hold_is_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "available_memory", lambda: 16 << 30)
    monkeypatch.setattr(cluster, "disk_bytes", lambda recipe, corpus_bytes: 0)

    def check(**training):
        cluster.check_budget(of_large(workers=1, **training), 1, tmp_path, 0)

    check()
    check(gradient_cache={"kind": "every"}, average={})
    check(gradient_cache={"kind": "stale", "max_bytes": 2 << 30})
    check(gradient_cache={"kind": "stale", "max_bytes": 10**12, "max_age": 1})
    with pytest.raises(UserError, match=r"gradient cache 32,256 MiB\) .*training.gradient_cache.max_bytes"):
        check(gradient_cache={"kind": "stale", "max_bytes": 10**12})
    monkeypatch.setattr(cluster, "available_memory", lambda: 8 << 30)
    with pytest.raises(UserError, match=r"at least 7,680 MiB\) "):  # five numbers a weight
        check(gradient_cache={"kind": "every"}, average={})


def test_the_checkpoints_hold_averages_and_cached_gradients():
    plain = cluster.disk_bytes(of_large(), 0)
    assert plain == 5 * 3 * WEIGHTS
    assert cluster.disk_bytes(of_large(average={}), 0) == plain + 5 * WEIGHTS
    cache = {"kind": "stale", "max_bytes": 10**12, "max_age": 3}
    assert cluster.disk_bytes(of_large(gradient_cache=cache), 0) == plain + 5 * 4 * WEIGHTS


def test_the_checkpoints_of_a_large_model_are_counted():
    def needed(width):
        model = {"kind": "resnet_bk", "d_model": 1024, "n_layers": 12, "feed_forward_width": width}
        return cluster.disk_bytes(parse_recipe({**RECIPE.model_dump(mode="json"), "model": model}), 0)

    weights = 12 * 2 * 1024 * 8192
    assert needed(8192) == 5 * 3 * 4 * weights  # keep_checkpoints and three more, as for a small model
    assert needed(16384) == 2 * needed(8192)


def test_the_limit_of_a_container_counts(monkeypatch):
    assert 0 < cluster.available_memory() <= cluster._machine_memory()
    monkeypatch.setattr(cluster, "estimate_available_memory", lambda: 5 << 20)
    assert cluster.available_memory() == 5 << 20


def test_soft_targets_take_six_bytes_for_each_of_k_twice_where_a_token_takes_four():
    def needed(**training):
        recipe = parse_recipe({**RECIPE.model_dump(mode="json"), "training": training})
        return cluster.disk_bytes(recipe, 4000)  # about 1000 tokens

    distilled = needed(distillation={"teachers": ["t"], "top_k": 5})
    assert distilled - needed() == 1000 * 2 * 5 * 6
