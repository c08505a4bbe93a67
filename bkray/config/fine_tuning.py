"""Which `training` keys for starting from a trained model fit together, and with the recipe's `model`."""

from __future__ import annotations

from bkray.config.model import ImportModel, Model, ResNetBKModel
from bkray.config.parallel import PowerSGD
from bkray.config.training import Training


def unsuitable_fine_tuning(training: Training, model: Model, window: int) -> list[str]:
    """Every fault of `training` for fine-tuning `model` on windows of that length, each with its mend."""
    faults = []
    if training.start_vocabulary == "overlap":
        faults += _unsuitable_overlap(training, model)
    if training.layer_decay:
        faults += _unsuitable_layer_decay(training, model)
    if training.freeze:
        faults += _unsuitable_freeze(f"training.freeze {training.freeze}", training.freeze, training, model)
        if training.embedding_lr:
            faults.append(
                f"training.embedding_lr {training.embedding_lr:g} has no effect: training.freeze keeps the "
                "embedding as it is: remove one"
            )
    elif training.activation_cache and not training.unfreeze:
        faults.append(
            "training.activation_cache has no effect without training.freeze or training.unfreeze: remove it"
        )
    if unfreeze := training.unfreeze:
        layers = len(unfreeze.at)
        what = f"training.unfreeze of {layers} layers"
        faults += _unsuitable_freeze(what, layers, training, model) + _unsuitable_phases(training)
    return faults + _too_small_a_cache(training, model, window)


def _too_small_a_cache(training: Training, model: Model, window: int) -> list[str]:
    cache = training.activation_cache
    if not cache or isinstance(model, ImportModel):
        return []
    least = cache.bytes_of(window, model.d_model)
    if cache.max_bytes >= least:
        return []
    return [
        f"training.activation_cache.max_bytes {cache.max_bytes} has no effect: what is kept of a window of "
        f"{window} takes {least} bytes: raise it to that at least, or remove training.activation_cache"
    ]


def _unsuitable_phases(training: Training) -> list[str]:
    """What cannot take parameters that are trained from some step on."""
    others = {
        "freeze": "whose layers are frozen for good",
        "gradient_cache": "which keeps gradients of the same parameters",
    }
    faults = [
        f"training.unfreeze cannot take training.{key}, {why}: remove one"
        for key, why in others.items()
        if getattr(training, key)
    ]
    if isinstance(training.gradient_compression, PowerSGD):
        faults.append(
            "training.unfreeze cannot take training.gradient_compression powersgd, which keeps errors of the "
            "same parameters: remove one, or set it to fp16 or bf16"
        )
    return faults


def _unsuitable_overlap(training: Training, model: Model) -> list[str]:
    faults, what = [], "training.start_vocabulary overlap"
    if not training.start_from:
        faults.append(
            f"{what} has no effect without training.start_from: set that to a trained model or remove this"
        )
    if isinstance(model, ImportModel):
        faults.append(
            f"{what} cannot take model kind import, whose embedding is not known: set it to same, or take "
            "another kind"
        )
    return faults


def _unsuitable_layer_decay(training: Training, model: Model) -> list[str]:
    faults, what = [], f"training.layer_decay {training.layer_decay:g}"
    if not training.start_from:
        faults.append(
            f"{what} would hold back untrained layers: set training.start_from to a trained model, or remove "
            "it"
        )
    if isinstance(model, ImportModel):
        faults.append(f"{what} cannot take model kind import, whose blocks are not known: remove it")
    return faults


def _unsuitable_freeze(what: str, layers: int, training: Training, model: Model) -> list[str]:
    """Where `what` keeps the embedding and the first `layers` blocks as they are."""
    faults = []
    if not training.start_from:
        faults.append(f"{what} would freeze untrained layers: set training.start_from to a trained model")
    if training.compile:
        faults.append(f"training.compile cannot take {what}, which runs in two parts: remove one")
    if isinstance(model, ImportModel):
        return [*faults, f"{what} cannot take model kind import, whose blocks are not known: remove it"]
    most, reason = model.n_layers - 1, f"of model.n_layers {model.n_layers}"
    if isinstance(model, ResNetBKModel) and model.halting:
        most = min(most, model.halting.first_layer)
        reason = f"with model.halting.first_layer {model.halting.first_layer}"
    if isinstance(model, ResNetBKModel) and model.multiscale:
        most = min(most, *model.multiscale.layers)
        reason = f"with model.multiscale.layers {list(model.multiscale.layers)}"
    if layers > most:
        faults.append(f"{what} is too many: at most {most} {reason}")
    return faults
