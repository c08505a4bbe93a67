"""Training without ray: the loop, optimizers and schedules, checkpoints, the cost ledger."""

from bkray.training.checkpoint import Checkpointer
from bkray.training.export import export_model, load_model
from bkray.training.gradient_cache import GradientCache
from bkray.training.ledger import Ledger
from bkray.training.loop import Reporter, TrainResult, WindowData, train
from bkray.training.optimizers import build_optimizer
from bkray.training.predictor import DifficultyPredictor
from bkray.training.schedules import LossTrendLR, build_schedule
from bkray.training.skipping import ExampleSkipper
from bkray.training.timing import interleaved_step_seconds

__all__ = [
    "Checkpointer",
    "DifficultyPredictor",
    "ExampleSkipper",
    "GradientCache",
    "Ledger",
    "LossTrendLR",
    "Reporter",
    "TrainResult",
    "WindowData",
    "build_optimizer",
    "build_schedule",
    "export_model",
    "interleaved_step_seconds",
    "load_model",
    "train",
]
