"""A machine is lost while a stage, or a worker of training, is at work on it; others go on in its place."""

import subprocess
import sys

import pytest
import yaml

pytestmark = [pytest.mark.ray, pytest.mark.long]

LOST = """
import os, shutil, subprocess, sys, time
from pathlib import Path
from ray.cluster_utils import Cluster
from bkray.runtime import cluster

DRIVER = '''
import os
from bkray.cli import main
from bkray.runtime import cluster
cluster._STALLED_S = float(os.environ["STALLED_S"])
main()
'''
recipe, out = sys.argv[1], Path(sys.argv[2])
os.environ.update({**cluster._LOCAL_RAY, "RAY_health_check_period_ms": "500"})
node = {"num_cpus": 2, "setup_worker_path": str(cluster.START_WORKER), "object_store_memory": 80 << 20}
machines = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
other = machines.add_node(**node)

def prepare(folder, stalled_s=300):
    command = [sys.executable, "-c", DRIVER, "prepare", recipe, "--out", str(folder)]
    environment = {**os.environ, "RAY_ADDRESS": machines.address, "STALLED_S": str(stalled_s)}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)

def made(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.glob("*/artifacts/*/part-*")}

try:
    usual = prepare(out / "usual")
    assert usual.wait() == 0, usual.stderr.read()
    later = shutil.ignore_patterns("scored-*", "selected-*", "training_set-*")
    shutil.copytree(out / "usual", out / "lost", ignore=later)
    # Actors that start again on the other machine may leave no CPU for what they wait for.
    lost = prepare(out / "lost", stalled_s=10)
    while not list(out.glob("lost/*/artifacts/.partial-scored-*")):
        assert lost.poll() is None, lost.stderr.read()
        time.sleep(0.01)
    time.sleep(1.0)  # actors are at work, or start
    before = {path: path.stat().st_mtime_ns for path in out.glob("lost/*/artifacts/[!.]*/part-*")}
    machines.remove_node(other, allow_graceful=False)
    said = lost.communicate()[1]
    assert lost.returncode in (0, 2), said
    assert "Traceback" not in said, said
    if lost.returncode:
        assert "run the same command again" in said, said
        lost = prepare(out / "lost")
        said = lost.communicate()[1]
        assert lost.returncode == 0, said
    assert {path: path.stat().st_mtime_ns for path in before} == before, "finished artifacts"
    assert made(out / "lost") == made(out / "usual")
    assert not list(out.glob("lost/*/artifacts/.partial-*"))
finally:
    machines.shutdown()
print("the same bytes")
"""


def test_the_same_command_goes_on_with_the_other_machine_to_the_same_bytes(small, tmp_path):
    command = [sys.executable, "-c", LOST, str(small), str(tmp_path)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert process.returncode == 0, process.stderr[-4000:]
    assert process.stdout.endswith("the same bytes\n")


TRAINING = """
import os, subprocess, sys, time
from pathlib import Path
import psutil
from ray.cluster_utils import Cluster
from bkray.runtime import cluster

START = "from bkray.cli import main; main()"
recipe, out = sys.argv[1], Path(sys.argv[2])
os.environ.update({**cluster._LOCAL_RAY, "RAY_health_check_period_ms": "500"})
node = {"num_cpus": 1, "setup_worker_path": str(cluster.START_WORKER), "object_store_memory": 80 << 20}
machines = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
others = [machines.add_node(**node) for _ in range(2)]

def run(folder):
    command = [sys.executable, "-c", START, "run", recipe, "--out", str(folder)]
    environment = {**os.environ, "RAY_ADDRESS": machines.address}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)

def trains(machine):
    [raylet] = machine.all_processes["raylet"]
    below = psutil.Process(raylet.process.pid).children(recursive=True)
    return any("RayTrainWo" in each.name() for each in below)  # of ray::RayTrainWorker Linux keeps 15

def made(folder):
    return next(folder.glob("*/model/model.safetensors")).read_bytes()

try:
    usual = run(out / "usual")
    said = usual.communicate()[1]
    assert usual.returncode == 0, said
    lost = run(out / "lost")
    while not list(out.glob("lost/*/checkpoints/step-*")):
        assert lost.poll() is None, lost.stderr.read()
        time.sleep(0.05)
    machines.remove_node(next(filter(trains, others)), allow_graceful=False)
    said = lost.communicate()[1]
    assert lost.returncode == 0, said
    assert said.count("backend auto") == 2, said  # its workers started twice
    assert made(out / "lost") == made(out / "usual")
finally:
    machines.shutdown()
print("the same bits")
"""


def test_workers_of_training_go_on_elsewhere_to_the_same_bits(small, tmp_path):
    """The machines have one CPU each: Ray Data's own tasks find one that no actor has a half of."""
    recipe = yaml.safe_load(small.read_text())
    recipe["training"].update({"parallel": "fsdp2", "tokens": 200_000, "average": None})
    small.write_text(yaml.safe_dump(recipe))
    command = [sys.executable, "-c", TRAINING, str(small), str(tmp_path)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert process.returncode == 0, process.stderr[-4000:]
    assert process.stdout.endswith("the same bits\n")
