"""ddp, zero1 and fsdp2, compression and accumulation: all runs of a world share its processes."""

import functools
import os
import shutil
from datetime import timedelta

import numpy as np
import pytest
import torch
import torch.distributed as dist

from bkray.config import UserError
from bkray.config.parallel import PowerSGD
from bkray.training import Ledger, train
from bkray.training.loop import TrainingRun
from bkray.training.optimization.optimizers import optimizers_of
from bkray.training.parallel.compression import LowRank
from bkray.training.parallel.shares import local
from bkray.training.parallel.world import World
from bkray.training.parallel.zero1 import ShardedOptimizer
from tests.devices import DEVICES
from tests.distributed.runs import (
    HERE,
    NOISY,
    VOCABULARY,
    distance,
    killed,
    left,
    near,
    parts,
    recipe,
    same_bits,
    trained,
)

pytestmark = pytest.mark.distributed

KINDS = ("ddp", "zero1", "fsdp2")
OPTIONS = {
    "experts": {"experts": {"count": 8, "balance": 1.0}},
    "koopman": {"koopman": {"warmup": 0.0}},
    "halting": {"halting": {"threshold": 0.94}},
    "sparsity": {"sparsity": {"density": 0.3, "weight": 10.0}},
    "bare": {},
}
WITH_MEMORY = {
    "powersgd": {"gradient_compression": "powersgd"},
    "unfrozen": {"start_from": "unread", "unfreeze": {"at": [0.25]}},
    NOISY: {},
    "stale": {"gradient_cache": {"kind": "stale", "threshold": 0.1, "first_audits": 1, "least_cosine": -1.0}},
    "every": {"gradient_cache": {"kind": "every", "steps": 3, "first_audits": 1, "least_cosine": -1.0}},
    "skip": {"skip": {"share": 0.5}},
    "tokens": {"token_selection": {"kind": "random", "keep": 0.5}},
    "average": {"average": {"decay": 0.9}},
    "length": {"length": {"start": 4, "until": 0.8}},
    "trend": {"schedule": {"kind": "loss_trend", "patience": 1}},
}
OF_MEANS = ("experts", "sparsity")
"""Options whose losses are not means over the sites."""
HARDWARE = {"precision": "bf16", "activation_checkpointing": True}


def state_bytes(settings):
    """Bytes of the optimizer's state on this rank after a step."""
    model, data, sampler, _ = parts(settings)
    run = TrainingRun(model, data, sampler, settings, None, Ledger(), None)
    run.train_step()
    whole = run.optimizer
    optimizers = whole.locals if isinstance(whole, ShardedOptimizer) else optimizers_of(whole)
    states = [state for one in optimizers for state in one.state.values()]
    return sum(local(t).nbytes for state in states for t in state.values() if t.ndim)


def sendings(kind):
    """How often gradients were sent in two steps of three micro-batches."""
    settings = recipe(accumulate=3, parallel=kind, gradient_compression="powersgd")
    model, data, sampler, _ = parts(settings)
    run = TrainingRun(model, data, sampler, settings, None, Ledger(), None)
    before = run.parallel.low_rank.state.iter
    run.train_step()
    run.train_step()
    return run.parallel.low_rank.state.iter - before


def buckets(settings):
    """What DDP was told of its buckets: their bytes, and whether the gradients lie in them."""
    run = TrainingRun(*parts(settings), None, Ledger(), None)
    return run.parallel_objective.bucket_bytes_cap, run.parallel_objective.gradient_as_bucket_view


def low_rank_buckets():
    """How many buckets a model has whose gradients fill more than DDP's first, of 1 MiB."""
    settings = recipe({"d_model": 64, "n_layers": 6}, gradient_compression={"kind": "powersgd", "start": 0})
    model, data, sampler, _ = parts(settings)
    assert sum(parameter.nbytes for parameter in model.parameters()) > 2**20
    run = TrainingRun(model, data, sampler, settings, None, Ledger(), None)
    run.train_step()
    run.train_step()
    return len(run.parallel.low_rank.state.error_dict)


def broken(kind):
    """What every rank says of a parameter that is not finite in the share of one rank."""
    model, *others = parts(recipe(parallel=kind))
    with torch.no_grad():
        model.embedding.weight[0, 0] = torch.nan
    with pytest.raises(UserError) as error:
        train(model, *others)
    return str(error.value)


def taken_over(kind, folder):
    """The end of a run that `kind` takes over from the checkpoints in `folder`."""
    here = folder.with_suffix(f".{kind}")
    if World.current().rank == 0:
        shutil.copytree(left(folder), here)
    World.current().total(torch.zeros(1))
    return trained(recipe(parallel=kind), here)


def of_means(name):
    """A run in float64: where two experts are as good, the rounding of float32 may choose among them."""
    return trained(recipe(OPTIONS[name], steps=50), dtype=torch.float64)


def errors_of_three_ranks():
    """What a world takes over of the errors that another one owed."""
    low_rank = LowRank(PowerSGD(kind="powersgd"), 10, torch.device("cpu"))
    errors = {0: [torch.full((2,), float(rank)) for rank in range(3)]}
    low_rank.load_state_dict({"iteration": 5, "errors": errors, "p": {}, "q": {}})
    return low_rank.state.error_dict[0].tolist()


def runs(size, folder):
    """What to do in a world, by name: all of it in the order given, on every rank."""
    for kind in KINDS:
        yield f"{kind}, muon", functools.partial(trained, recipe(steps=50, parallel=kind))
        adamw = recipe(steps=50, parallel=kind, optimizer="adamw")
        yield f"{kind}, adamw", functools.partial(trained, adamw, dtype=torch.float64)
        yield f"{kind}, adamw, float32", functools.partial(trained, adamw)
        short = recipe(parallel=kind, optimizer="adamw")
        yield f"{kind}, adamw, float32, 12 steps", functools.partial(trained, short)
        for optimizer in ("muon", "adamw"):
            settings = recipe(parallel=kind, optimizer=optimizer)
            yield f"{kind}, {optimizer}, bytes", functools.partial(state_bytes, settings)
        yield f"{kind}, through", functools.partial(trained, recipe(parallel=kind))
        yield f"{kind}, killed", functools.partial(killed, recipe(parallel=kind), folder / kind)
    for kind, before in zip(KINDS, (*KINDS[1:], "alone"), strict=True):
        yield f"{kind}, after {before}", functools.partial(taken_over, kind, folder / before)
        yield f"{kind}, resumed", functools.partial(trained, recipe(parallel=kind), folder / kind)
    for name, training in WITH_MEMORY.items():
        settings = recipe(name=name, **training)
        yield f"{name}, through", functools.partial(trained, settings)
        yield f"{name}, killed", functools.partial(killed, settings, folder / name)
        yield f"{name}, resumed", functools.partial(trained, settings, folder / name)
    yield "errors", errors_of_three_ranks
    for name in OF_MEANS:
        yield f"{name}, 50 steps", functools.partial(of_means, name)
    if size > 2:
        return
    for kind in KINDS:
        for name, option in OPTIONS.items():
            training = HARDWARE if name == "bare" else {}
            settings = recipe(option, steps=3, parallel=kind, **training)
            yield f"{kind}, {name}", functools.partial(trained, settings)
        yield f"{kind}, accumulated", functools.partial(trained, recipe(parallel=kind, accumulate=3))
        yield f"{kind}, broken", functools.partial(broken, kind)
    for kind in ("ddp", "zero1"):
        yield f"{kind}, sendings", functools.partial(sendings, kind)
    yield "low-rank buckets", low_rank_buckets
    for kind in ("fp16", "bf16"):
        yield f"{kind}, through", functools.partial(trained, recipe(gradient_compression=kind))
    small = recipe(bucket_mb=0.001, gradient_as_bucket_view=False)
    yield "buckets, through", functools.partial(trained, small)
    yield "buckets", functools.partial(buckets, small)
    yield "usual buckets", functools.partial(buckets, recipe())


def plain_runs(size, folder):
    for kind in KINDS:
        yield kind, functools.partial(trained, recipe(steps=50, parallel=kind))


def work(rank, size, folder, device, runs=runs):
    torch.set_num_threads(1)
    HERE["device"] = device
    if device == "cuda":  # NCCL takes ranks on one GPU only if it believes them on several hosts
        os.environ |= {"NCCL_HOSTID": str(rank), "NCCL_SOCKET_IFNAME": "lo"}
        torch.cuda.set_device(rank % torch.cuda.device_count())
    else:  # torch's PowerSGD waits for a GPU where it sees one
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    backend = "nccl" if device == "cuda" else "gloo"
    dist.init_process_group(
        backend, f"file://{folder}/rendezvous", timedelta(minutes=5), rank=rank, world_size=size
    )
    results = {name: run() for name, run in runs(size, folder)}
    torch.save(results, folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def finished(spawn, size, folder, device):
    """(size, folder, every rank's results)."""
    killed(recipe(), folder / "alone")
    spawn(work, (size, folder, device), size)
    return (
        size,
        folder,
        [torch.load(folder / f"{rank}.pt", weights_only=True, map_location="cpu") for rank in range(size)],
    )


@pytest.fixture(scope="module", params=DEVICES)
def device(request):
    HERE["device"] = request.param
    yield request.param
    HERE["device"] = "cpu"


@pytest.fixture(scope="module")
def world_of_2(spawn, tmp_path_factory, device):
    return finished(spawn, 2, tmp_path_factory.mktemp("world"), device)


@pytest.fixture(scope="module")
def world_of_4(spawn, tmp_path_factory, device):
    return finished(spawn, 4, tmp_path_factory.mktemp("world"), device)


@pytest.fixture(scope="module", params=["world_of_2", pytest.param("world_of_4", marks=pytest.mark.long)])
def world(request, device):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def alone(device):
    runs = {steps: trained(recipe(steps=steps)) for steps in (12, 50)}
    runs["adamw, float32"] = trained(recipe(steps=50, optimizer="adamw"))
    runs.update({name: of_means(name) for name in OF_MEANS})
    return {**runs, "adamw": trained(recipe(steps=50, optimizer="adamw"), dtype=torch.float64)}


def test_all_worlds_and_kinds_end_with_the_same_weights(world, alone):
    """AdamW divides gradients near 0 by themselves: in float32 the order of sums shows in the end."""
    _, _, (first, *_) = world
    assert distance(first["ddp, muon"], alone[50]) < near(1e-5)
    assert distance(first["ddp, adamw"], alone["adamw"]) < 1e-5
    assert distance(first["ddp, adamw, float32"], alone["adamw, float32"]) < 1e-5
    assert same_bits(first["zero1, adamw, float32"], first["ddp, adamw, float32"])
    ends = ("adamw, float32, 12 steps", 1e-6), ("adamw, float32", 1e-5)
    for run, bound in ends:
        assert distance(first[f"fsdp2, {run}"], first[f"ddp, {run}"]) < bound
    for optimizer, bound in (("muon", near(1e-6)), ("adamw", 1e-6)):
        assert same_bits(first[f"zero1, {optimizer}"], first[f"ddp, {optimizer}"])
        assert distance(first[f"fsdp2, {optimizer}"], first[f"ddp, {optimizer}"]) < bound


@pytest.mark.parametrize("option", OF_MEANS)
def test_the_losses_of_options_are_those_of_all_ranks_sites(world, alone, option):
    _, _, (first, *_) = world
    assert distance(first[f"{option}, 50 steps"], alone[option]) < near(1e-5)


def test_three_ranks_end_with_the_same_weights(spawn, tmp_path, device, alone):
    """Their number divides neither the bytes of a bucket nor what one rank alone adds up."""
    spawn(work, (3, tmp_path, device, plain_runs), 3)
    for rank in range(3):
        results = torch.load(tmp_path / f"{rank}.pt", weights_only=True, map_location="cpu")
        for kind in KINDS:
            assert distance(results[kind], alone[50]) < near(1e-5)
            assert same_bits(results[kind], results["ddp"]) == (kind != "fsdp2")


def test_all_ranks_hold_the_same_whole_model_at_the_end(world):
    _, _, ranks = world
    for results in ranks:
        assert all(result["ranks agree"] for result in results.values() if isinstance(result, dict))
    first = ranks[0]
    for kind in ("zero1", "fsdp2"):
        torch.testing.assert_close(first[f"{kind}, muon"]["logits"], first["ddp, muon"]["logits"])


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_rank_keeps_its_share_of_the_optimizers_state(world, optimizer):
    size, _, ranks = world
    (whole,) = {results[f"ddp, {optimizer}, bytes"] for results in ranks}
    for kind in ("zero1", "fsdp2"):
        for results in ranks:
            assert results[f"{kind}, {optimizer}, bytes"] <= (1 / size + 0.02) * whole


def test_the_ledger_counts_what_all_ranks_compute(world, alone):
    size, _, (first, *_) = world
    flops = {kind: first[f"{kind}, muon"]["flops"] for kind in KINDS}
    once = alone[50]["flops"]
    for kind in KINDS:
        assert flops[kind]["training"] == once["training"]
    assert flops["ddp"]["optimizer"] == size * once["optimizer"]
    assert flops["zero1"]["optimizer"] == once["optimizer"]
    assert once["optimizer"] < flops["fsdp2"]["optimizer"] < flops["ddp"]["optimizer"]
    assert first["fsdp2, adamw"]["flops"]["optimizer"] == first["zero1, adamw"]["flops"]["optimizer"]
    assert ("settling" in flops["ddp"]) == (size > 2)
    assert "settling" not in flops["fsdp2"]
    settled = [first[f"{name}, through"]["flops"].get("settling", 0.0) for name in ("ddp", "unfrozen")]
    assert settled[0] < settled[1] < 2 * settled[0] if size > 2 else settled == [0.0, 0.0]


@pytest.mark.parametrize("kind", [*KINDS, *WITH_MEMORY])
def test_a_killed_run_ends_with_the_same_bits(world, kind):
    _, _, (first, *_) = world
    assert len(first[f"{kind}, resumed"]["losses"]) < len(first[f"{kind}, through"]["losses"])
    assert same_bits(first[f"{kind}, resumed"], first[f"{kind}, through"])


def test_runs_go_on_under_another_kind_and_in_another_world(world, alone, tmp_path):
    _, folder, (first, *_) = world
    for name in ("ddp, after zero1", "zero1, after fsdp2", "fsdp2, after alone"):
        assert distance(first[name], alone[12]) < near(1e-5)
        np.testing.assert_allclose(first[name]["losses"], alone[12]["losses"][-3:], atol=near(1e-5))
    for kind in KINDS:
        shutil.copytree(left(folder / kind), tmp_path / kind)
        rest = trained(recipe(), tmp_path / kind)
        assert distance(rest, alone[12]) < near(1e-5)
        np.testing.assert_allclose(rest["losses"], alone[12]["losses"][-3:], atol=near(1e-5))


@pytest.mark.parametrize("name", ["unfrozen", "stale", "every", "skip", "average", "length", "trend"])
def test_techniques_go_on_in_another_world(world, tmp_path, name):
    _, folder, (first, *_) = world
    shutil.copytree(left(folder / name), tmp_path / name)
    rest = trained(recipe(name=name, **WITH_MEMORY[name]), tmp_path / name)
    assert len(rest["losses"]) < len(first[f"{name}, through"]["losses"])
    assert distance(rest, first[f"{name}, through"]) < near(1e-5)


def test_low_rank_compression_starts_late_and_is_charged(world):
    size, _, (first, *_) = world
    result = first["powersgd, through"]
    assert 1e-4 < distance(result, first["ddp, through"]) < 0.1
    assert result["losses"][0] == pytest.approx(first["ddp, through"]["losses"][0], abs=1e-2)
    plain = [16 * 16, 16 * 64, VOCABULARY * 16]
    assert result["flops"]["gradient_compression"] % (6 * size * np.gcd.reduce(plain)) == 0
    assert result["flops"]["settling"] > 0
    assert first["errors"] == [1.0, 1.0]


def test_low_rank_compression_sends_in_one_order(world_of_2):
    """With several buckets gloo's threads would send the next part of whichever got its answer first."""
    assert world_of_2[2][0]["low-rank buckets"] == 1


@pytest.fixture(scope="module")
def two(world_of_2):
    """Rank 0's results of what is tried with two ranks only."""
    return world_of_2[2][0]


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("kind", ["zero1", "fsdp2"])
def test_options_and_hardware_train_alike(two, kind, option):
    assert distance(two[f"{kind}, {option}"], two[f"ddp, {option}"]) < near(1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_accumulated_micro_batches_are_the_whole_step(two, kind):
    assert distance(two[f"{kind}, accumulated"], two["ddp, through"]) < near(1e-6)
    if kind != "fsdp2":
        assert two[f"{kind}, sendings"] == 2
    losses = two["ddp, through"]["losses"]
    np.testing.assert_allclose(two[f"{kind}, accumulated"]["losses"], losses, atol=near(1e-6))


@pytest.mark.parametrize("kind", KINDS)
def test_every_rank_names_what_is_not_finite_on_one(world_of_2, kind):
    for results in world_of_2[2]:
        assert "parameter embedding.weight is not finite before step 0" in results[f"{kind}, broken"]


def test_gradients_of_16_bits_are_rounded_and_buckets_change_nothing(two):
    for kind in ("fp16", "bf16"):
        assert 1e-6 < distance(two[f"{kind}, through"], two["ddp, through"]) < 0.05
    assert same_bits(two["buckets, through"], two["ddp, through"])
    assert two["buckets"] == (int(0.001 * 2**20), False)
    assert two["usual buckets"] == (25 * 2**20, True)
