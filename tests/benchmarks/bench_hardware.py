"""What precision, checkpointing and compilation do to a step: python tests/benchmarks/bench_hardware.py

ResNetBK and Transformer, d = 192, 4 layers, V = 4096, batch 8 x 256: a training step (forward, backward,
Muon), and what its forward pass keeps for the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from compare import Arm, compare
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

from bkray.config.model import ResNetBKModel, TransformerModel
from bkray.config.training import Training
from bkray.model import build_model
from bkray.training import build_optimizer
from bkray.training.hardware import autocast, prepare

BATCH, LENGTH, VOCABULARY, ROUNDS = 8, 256, 4096, 9
ARMS = {
    "fp32": Training(),
    "bf16": Training(precision="bf16"),
    "checkpointing": Training(activation_checkpointing=True),
    "compile": Training(compile=True),
    "bf16 + compile": Training(precision="bf16", compile=True),
}


def training_step(
    section: ResNetBKModel | TransformerModel, training: Training
) -> tuple[Arm, Callable[[], int]]:
    """A step, and the bytes that its forward pass keeps beside the parameters."""
    torch.manual_seed(0)
    model = build_model(section, VOCABULARY).train()
    prepared, optimizer = prepare(model, training), build_optimizer(model, training)
    tokens = torch.randint(VOCABULARY, (BATCH, LENGTH + 1))

    def loss() -> torch.Tensor:
        with autocast(training, tokens.device):
            logits_BNV = prepared(tokens[:, :-1])
        return F.cross_entropy(logits_BNV.flatten(0, 1).float(), tokens[:, 1:].flatten())

    def run() -> None:
        loss().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def kept() -> int:
        sizes = {parameter.data_ptr(): 0 for parameter in model.parameters()}

        def note(tensor: torch.Tensor) -> torch.Tensor:
            sizes.setdefault(tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes())
            return tensor

        with saved_tensors_hooks(note, lambda tensor: tensor):
            loss()
        return sum(sizes.values())

    return run, kept


if __name__ == "__main__":
    torch.set_num_threads(1)
    for section in (ResNetBKModel(kind="resnet_bk"), TransformerModel(kind="transformer")):
        steps = {name: training_step(section, training) for name, training in ARMS.items()}
        compare(section.kind, {name: run for name, (run, _) in steps.items()}, ROUNDS)
        for name, (_, kept) in steps.items():
            print(f"  {name:28} keeps {kept() / 2**20:7.1f} MiB", flush=True)
