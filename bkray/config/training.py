"""The recipe's `training`: the loop, its optimizer and how it runs on the hardware."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from bkray.config.distillation import Distillation
from bkray.config.divergence import OnDivergence
from bkray.config.gradient_cache import GradientReuse
from bkray.config.parallel import GradientCompression, HalfPrecision, PowerSGD
from bkray.config.savings import ActivationCache, Length, Replay, TokenSelection, Unfreeze
from bkray.config.schedule import OneCycle, PlainSchedule, Schedule
from bkray.config.section import Count, Rate, Section
from bkray.config.skip import Skip


class Profile(Section):
    """Which steps torch.profiler traces, on every rank; the first step is 0."""

    start: Annotated[int, Field(ge=0)] = 10
    steps: Count = 5


PLACEMENT = ("workers", "parallel", "accumulate", "gpu_share")
"""Keys that say where a run is computed: it may go on with others. They change its result by rounding alone,
but for what a model's options and `token_selection` take over a worker's windows or a micro-batch."""
_BUCKETS = ("bucket_mb", "gradient_as_bucket_view", "gradient_compression")


class Average(Section):
    """An exponential moving average of the weights, which validation, evaluation and export then use."""

    decay: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.999
    """What is kept at each step; less in the first ones."""


class Training(Section):
    tokens: Annotated[int, Field(ge=1)] = 2_000_000
    """Target tokens seen in all, those of `replay` among them."""
    batch_tokens: Annotated[int, Field(ge=1)] = 4096
    """Target tokens of a global batch, whatever the number of workers."""
    optimizer: Literal["adamw", "muon"] = "muon"
    lr: Rate = 3e-3
    embedding_lr: Rate | None = None
    """Of the embedding and the output head; null: `lr`."""
    schedule: Schedule = PlainSchedule(kind="linear")
    """What follows the warm-up."""
    warmup: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.05
    """Share of the steps in which the rate rises to `lr`."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.01
    clip: Annotated[float, Field(gt=0.0)] = 1.0
    """Largest norm of the gradient."""
    average: Average | None = None
    workers: Annotated[int, Field(ge=1)] = 2
    gpu_share: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Of a GPU, where there are GPUs, that a single worker takes: runs of small models can share one."""
    parallel: Literal["ddp", "zero1", "fsdp2"] = "ddp"
    """What every worker holds: everything; its share of the optimizer's state; of the parameters as well."""
    accumulate: Annotated[int, Field(ge=1)] = 1
    """Micro-batches that a worker takes its windows of a global batch in."""
    bucket_mb: Annotated[float, Field(gt=0.0, le=1e6)] | None = None
    """Size in MiB of the buckets in which gradients travel, each as soon as it is full; null: torch's 25."""
    gradient_as_bucket_view: bool = True
    """Gradients lie in the buckets and are not copied there."""
    gradient_compression: GradientCompression | None = None
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the forward pass; weights, optimizer, losses and BK's operators stay in float32."""
    activation_checkpointing: bool = False
    """Keep only the inputs of the blocks and compute the rest again for the backward pass."""
    compile: bool = False
    """torch.compile of the training pass."""
    length: Length | None = None
    """Length curriculum."""
    start_from: str | None = None
    """Folder of an exported model: its weights, and its tokenizer for the corpus."""
    start_vocabulary: Literal["same", "overlap"] = "same"
    """overlap: the corpus has a tokenizer of its own, and the embedding what both vocabularies share."""
    freeze: Annotated[int, Field(ge=1)] | None = None
    """The embedding, which is the output head too, and so many of the first blocks keep their weights."""
    unfreeze: Unfreeze | None = None
    layer_decay: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Layer-wise learning rates: block i of L, counted from 0 at the bottom, has lr layer_decay^(L - i)."""
    activation_cache: ActivationCache | None = None
    replay: Replay | None = None
    token_selection: TokenSelection | None = None
    distillation: Distillation | None = None
    skip: Skip | None = None
    gradient_cache: GradientReuse | None = None
    """Use the gradients of earlier batches again."""
    log_every: Annotated[int, Field(ge=1)] = 10
    """Steps between two lines of metrics.jsonl."""
    eval_every: Annotated[int, Field(ge=1)] = 50
    """Steps between two looks at the validation split."""
    eval_windows: Annotated[int, Field(ge=1)] = 128
    checkpoint_every: Annotated[int, Field(ge=1)] = 50
    keep_checkpoints: Annotated[int, Field(ge=1)] = 2
    max_failures: Annotated[int, Field(ge=0)] = 2
    """How often a lost worker is replaced before the run gives up."""
    on_divergence: OnDivergence | None = None
    """Where loss, gradient or a parameter is not finite; null: the run stops."""
    profile: Profile | None = None
    """A trace of some steps, under `profile/` in the run's folder."""
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()
    """Where the lines of metrics.jsonl go as well."""

    @property
    def too_high(self) -> str:
        """What to lower where loss, gradient or a parameter is not finite."""
        highest = max(self.lr, self.embedding_lr or 0.0)
        named = {"lr": self.lr, "embedding_lr": self.embedding_lr}
        if highest * self.weight_decay >= 1.0 > highest:  # it is the decay that turns weights round
            named["weight_decay"] = self.weight_decay
        shown = [f"training.{key} is {value}" for key, value in named.items() if value]
        mend = f"{', '.join(shown)}: try {'lower ones' if shown[1:] else 'a lower one'}"
        if isinstance(self.gradient_compression, HalfPrecision) and self.gradient_compression.kind == "fp16":
            mend += ", or bf16 in training.gradient_compression: fp16 holds no gradient above 65,504"
        return mend

    @model_validator(mode="after")
    def _rise(self) -> Training:
        if isinstance(self.schedule, OneCycle) and not self.warmup:
            raise ValueError("schedule one_cycle rises in training.warmup of the steps: set it above 0")
        return self

    @model_validator(mode="after")
    def _buckets(self) -> Training:
        given, faults = ", ".join(f"training.{key}" for key in _BUCKETS if self.changed(key)), []
        if given and self.workers == 1:
            faults.append(f"{given}: a single worker sends no gradients: remove it or raise training.workers")
        if self.workers > 1 and self.gpu_share < 1:
            faults.append(
                f"training.gpu_share {self.gpu_share}: several workers take a GPU each: remove it or set "
                "training.workers to 1"
            )
        if given and self.parallel == "fsdp2":
            faults.append(
                f"{given}: training.parallel fsdp2 sends gradients without the buckets of DDP: remove it or "
                "set training.parallel to ddp or zero1"
            )
        if self.bucket_mb and isinstance(self.gradient_compression, PowerSGD):
            faults.append(
                "training.bucket_mb has no effect: training.gradient_compression powersgd sends all "
                "gradients in one bucket: remove one of the two"
            )
        if self.compile and self.parallel == "fsdp2":
            faults.append(
                "training.compile: a model that gathers its parameters block by block (training.parallel "
                "fsdp2) is not one graph: remove it or set training.parallel to ddp or zero1"
            )
        if faults:
            raise ValueError("\n".join(faults))
        return self

    @field_validator("trackers")
    @classmethod
    def _each_once(cls, trackers: tuple[str, ...]) -> tuple[str, ...]:
        if twice := sorted({kind for kind in trackers if trackers.count(kind) > 1}):
            raise ValueError(f"{', '.join(twice)} is named more than once")
        return trackers
