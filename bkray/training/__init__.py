"""Training without ray: the loop, optimizers and schedules, checkpoints, the cost ledger."""

from bkray.training.batches import WindowData
from bkray.training.cost.ledger import Ledger
from bkray.training.cost.timing import interleaved_step_seconds
from bkray.training.interfaces import Reporter
from bkray.training.loop import TrainResult, train
from bkray.training.optimization.optimizers import build_optimizer
from bkray.training.optimization.schedules import LossTrendLR, build_schedule
from bkray.training.state.checkpoint import Checkpointer
from bkray.training.state.export import export_model, load_model
from bkray.training.techniques.gradient_cache import GradientCache
from bkray.training.techniques.predictor import DifficultyPredictor
from bkray.training.techniques.skipping import ExampleSkipper

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
