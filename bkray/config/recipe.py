"""The recipe: everything that a run depends on, as frozen pydantic models.

    YAML file ─► load_recipe(path, overrides) ─► Recipe ─► every stage takes its own section

Unknown keys are refused (`loading.py` adds suggestions), and so are keys that would have no effect.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from bkray.config.corpus import AnyCorpus, Cleaning, Tokenizer
from bkray.config.divergence import SkipStep
from bkray.config.fine_tuning import unsuitable_fine_tuning
from bkray.config.model import GRUModel, ImportModel, Model, ResNetBKModel
from bkray.config.parallel import PowerSGD
from bkray.config.preparation import (
    MODEL_SCORES,
    Augmentation,
    Curriculum,
    Difficulty,
    Proxy,
    Sampling,
    Selection,
)
from bkray.config.schedule import LossTrend, Plateau, WarmRestarts
from bkray.config.section import Section
from bkray.config.training import Training


class Samples(Section):
    """The text generated for the report."""

    prompts: tuple[str, ...] = ("Returns the",)
    tokens: Annotated[int, Field(ge=1)] = 80
    temperature: Annotated[float, Field(gt=0.0)] = 0.8


class Evaluation(Section):
    """What is evaluated beside the test split."""

    pool: str
    """Folder of the finished run whose held-out text the start model and the trained one are compared on."""


class Recipe(Section):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    corpus: AnyCorpus
    cleaning: Cleaning = Cleaning()
    tokenizer: Tokenizer = Tokenizer()
    window: Annotated[int, Field(ge=2)] = 256
    augmentation: tuple[Augmentation, ...] = ()
    difficulty: Difficulty | None = None
    selection: Selection | None = None
    proxy: Proxy | None = None
    curriculum: Curriculum | None = None
    sampling: Sampling | None = None
    model: Model = ResNetBKModel(kind="resnet_bk")
    training: Training = Training()
    evaluation: Evaluation | None = None
    samples: Samples | None = Samples()

    @property
    def batch_windows(self) -> int:
        """Windows of a global batch."""
        return self.training.batch_tokens // self.window

    @property
    def steps(self) -> int:
        """Optimizer steps: as many as it takes to see `training.tokens`."""
        return -(-self.training.tokens // (self.batch_windows * self.window))

    @property
    def needs_proxy(self) -> bool:
        asking = (self.difficulty, self.selection, self.sampling, self.training.token_selection)
        return any(part is not None and part.needs_proxy for part in asking)

    @property
    def trains_proxy(self) -> bool:
        """Whether the scoring model is a small one, trained for it."""
        return self.needs_proxy and not (self.proxy and self.proxy.folder)

    @property
    def needs_hidden(self) -> bool:
        """Whether the scoring model's final states are asked for."""
        selection = self.selection
        return bool(selection and (selection.diversity or selection.kind == "variation_ratio"))

    @property
    def given_models(self) -> dict[str, str]:
        """Folders of exported models by the setting that names them."""
        named = {
            "training.start_from": self.training.start_from,
            "proxy.folder": self.proxy and self.proxy.folder,
            "difficulty.reference": self.difficulty and self.difficulty.reference,
            **self.teachers,
        }
        return {setting: folder for setting, folder in named.items() if folder}

    @property
    def tokenizer_models(self) -> dict[str, str]:
        """Those of the given models whose tokenizer, the same for all, the corpus gets."""
        own = "training.start_from" if self.training.start_vocabulary == "overlap" else None
        return {setting: folder for setting, folder in self.given_models.items() if setting != own}

    @property
    def pool(self) -> tuple[str, str] | None:
        """Where the pool of pretraining is named: the setting, and the folder of its run."""
        if self.training.replay:
            return "training.replay.run", self.training.replay.run
        return ("evaluation.pool", self.evaluation.pool) if self.evaluation else None

    @property
    def replayed(self) -> int:
        """Windows of the pool that the run draws."""
        replay = self.training.replay
        return round(self.steps * replay.share * self.batch_windows) if replay else 0

    @property
    def teachers(self) -> dict[str, str]:
        """Folders of the models whose predictions are learnt, by the setting that names them."""
        distillation = self.training.distillation
        folders = distillation.teachers if distillation else ()
        return {f"training.distillation.teachers[{place}]": folder for place, folder in enumerate(folders)}

    @model_validator(mode="before")
    @classmethod
    def _imply(cls, values: Any) -> Any:
        """Fill in what a curriculum or a model score cannot do without."""
        if not isinstance(values, dict):
            return values
        values = dict(values)
        if values.get("curriculum") is not None and values.get("difficulty") is None:
            values["difficulty"] = {"kind": "compression"}
        named = (("difficulty", "kind"), ("selection", "kind"), ("sampling", "weight"))
        kinds = [part.get(name) for key, name in named if isinstance(part := values.get(key), dict)]
        if isinstance(training := values.get("training"), dict):
            tokens = training.get("token_selection")
            kinds += [tokens.get("kind", "reducible")] if isinstance(tokens, dict) else []
        selection = values.get("selection")
        diverse = isinstance(selection, dict) and selection.get("diversity") is not None
        scores = {kind for kind in kinds if isinstance(kind, str)} & MODEL_SCORES
        if (scores or diverse) and values.get("proxy") is None:
            values["proxy"] = {}
        return values

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        faults = []
        if self.difficulty and not self.curriculum:
            faults.append("difficulty has no effect without a curriculum: add one or remove difficulty")
        if self.proxy and not self.needs_proxy:
            faults.append(
                "proxy has no effect: neither difficulty (loss, perplexity, entropy, reducible), selection "
                "(entropy, margin, least_confidence, variation_ratio, or any with diversity), sampling "
                "(loss, entropy, least_confidence) nor training.token_selection (reducible) asks for a "
                "model's score"
            )
        if self._refers_to_itself():
            faults.append(
                f"difficulty.reference {self.given_models['difficulty.reference']} is the model of "
                "proxy.folder, so that every score would be 0: name another one"
            )
        kinds = [section.kind for section in self.augmentation]
        if twice := next((kind for kind in kinds if kinds.count(kind) > 1), None):
            faults.append(
                f"augmentation names kind {twice} twice, whose copies have the same ids: remove one"
            )
        if self.training.batch_tokens % self.window:
            faults.append(
                f"training.batch_tokens {self.training.batch_tokens} must be a multiple of "
                f"window {self.window}"
            )
        elif self.batch_windows % self.training.workers:
            faults.append(
                f"training.batch_tokens {self.training.batch_tokens} is {self.batch_windows} windows of "
                f"{self.window}, which training.workers {self.training.workers} cannot share evenly"
            )
        elif self.training.accumulate > (mine := self.batch_windows // self.training.workers):
            faults.append(
                f"training.accumulate {self.training.accumulate} is more than the {mine} windows that "
                "a worker has of a global batch: lower it or raise training.batch_tokens"
            )
        skip = self.training.skip
        if skip and self.batch_windows and skip.candidates(self.batch_windows) == self.batch_windows:
            faults.append(
                f"training.skip.share {skip.share} skips none of a batch of {self.batch_windows} windows: "
                "raise it or training.batch_tokens"
            )
        faults += self._unsuitable_hardware() + self._unsuitable_pool() + self._inert_tokenizer()
        faults += self._unsuitable_savings() + self._profile_beyond_the_end() + self._rise_of_one_step()
        faults += self._restart_within_the_warm_up() + self._sites_beyond_the_window()
        faults += self._too_few_looks() + self._too_few_steps() if self.batch_windows else []
        if faults:
            raise ValueError("\n".join(faults))
        return self

    def _refers_to_itself(self) -> bool:
        models = [self.given_models.get(setting) for setting in ("proxy.folder", "difficulty.reference")]
        scorer, reference = (folder and Path(folder).resolve() for folder in models)
        return bool(scorer) and scorer == reference

    def _unsuitable_hardware(self) -> list[str]:
        faults = []
        if self.training.activation_checkpointing and isinstance(self.model, ImportModel):
            faults.append(
                "training.activation_checkpointing has no effect on model kind import, whose blocks are not "
                "known: remove it, and use torch.utils.checkpoint in the module"
            )
        if self.training.compile and isinstance(self.model, GRUModel):
            faults.append(
                "training.compile cannot take model kind gru, whose recurrence torch leaves uncompiled: "
                "remove it"
            )
        if self.training.compile and isinstance(self.model, ResNetBKModel) and self.model.halting:
            faults.append(
                "training.compile cannot take model.halting, whose shapes depend on the tokens: remove one"
            )
        if self.training.compile and self.training.activation_checkpointing:
            reporting = [name for name in ("experts", "sparsity") if getattr(self.model, name, None)]
            if reporting:
                faults.append(
                    f"training.compile with training.activation_checkpointing cannot take model."
                    f"{' and model.'.join(reporting)}, whose part of the loss breaks the graph: remove one"
                )
        return faults

    def _unsuitable_pool(self) -> list[str]:
        faults = []
        training = self.training
        if self.pool and not training.start_from:
            faults.append(
                f"{self.pool[0]} {self.pool[1]} has no effect without training.start_from: a model that "
                "learnt nothing forgets nothing: set it or remove this"
            )
        if self.pool and training.start_vocabulary == "overlap":
            faults.append(
                f"{self.pool[0]} {self.pool[1]} cannot take training.start_vocabulary overlap: the pool's "
                "windows are in the start model's vocabulary: set it to same, or remove one"
            )
        if training.replay and self.evaluation:
            faults.append(
                "evaluation.pool has no effect beside training.replay, whose run is evaluated: remove it"
            )
        if training.replay and training.skip:
            faults.append(
                "training.skip cannot take training.replay, of whose share a window that loses little would "
                "be skipped first: remove one"
            )
        if training.replay and training.token_selection and training.token_selection.needs_proxy:
            faults.append(
                "training.token_selection reducible cannot take training.replay, whose windows no proxy has "
                "scored: remove one or select kind random"
            )
        if training.replay and training.distillation:
            faults.append(
                "training.distillation cannot take training.replay, whose windows the teachers do not read: "
                "remove one"
            )
        if training.replay and self.batch_windows and self.replayed in (0, self.steps * self.batch_windows):
            which, mend = ("every", "lower") if self.replayed else ("no", "raise")
            faults.append(
                f"training.replay.share {training.replay.share:g} is {which} window of {self.steps} batches "
                f"of {self.batch_windows}: {mend} it"
            )
        return faults

    def _profile_beyond_the_end(self) -> list[str]:
        profile = self.training.profile
        if not profile or not self.batch_windows or profile.start + profile.steps <= self.steps:
            return []
        return [
            f"training.profile start {profile.start} and steps {profile.steps} go beyond the {self.steps} "
            f"steps of training.tokens {self.training.tokens}: start earlier or trace fewer"
        ]

    def _rise_of_one_step(self) -> list[str]:
        training = self.training
        if training.schedule.kind != "one_cycle" or not self.batch_windows:
            return []
        if training.warmup * self.steps != 1.0:
            return []
        return [
            f"training.warmup {training.warmup:g} is one of {self.steps} steps, in which one_cycle cannot "
            "rise: raise it"
        ]

    def _restart_within_the_warm_up(self) -> list[str]:
        training = self.training
        if not isinstance(training.schedule, LossTrend) or not self.batch_windows:
            return []
        every, rising = training.schedule.restart_every, round(training.warmup * self.steps)
        if every is None or rising < every < self.steps:
            return []
        return [
            f"training.schedule.restart_every {every} must be above the {rising} steps of the warm-up, which "
            f"each restart begins with, and below the {self.steps} steps of the run"
        ]

    def _too_few_looks(self) -> list[str]:
        training, before_the_end, faults = self.training, self.steps - 1, []
        schedule = training.schedule
        if isinstance(schedule, Plateau):
            looks = before_the_end // training.eval_every
            if looks < schedule.patience + 2:
                faults.append(
                    f"training.schedule plateau cannot lower the rate: {self.steps} steps have {looks} looks "
                    f"at the validation split before the last, and patience {schedule.patience} needs "
                    f"{schedule.patience + 2}: lower training.eval_every {training.eval_every} or patience"
                )
        if isinstance(schedule, LossTrend):
            lines = before_the_end // training.log_every
            if lines <= schedule.patience:
                faults.append(
                    f"training.schedule loss_trend cannot move the rate: {self.steps} steps have {lines} "
                    f"lines of the log before the last, and patience {schedule.patience} needs "
                    f"{schedule.patience + 1}: lower training.log_every {training.log_every} or patience"
                )
        return faults

    def _too_few_steps(self) -> list[str]:
        """Where some part of a schedule or curriculum has no step."""
        training, steps, faults = self.training, self.steps, []
        schedule, length, skip = training.schedule, training.length, training.skip
        left = steps - round(training.warmup * steps)
        if isinstance(schedule, WarmRestarts) and not schedule.fit(left):
            faults.append(
                f"training.schedule restarts of {schedule.cycles} cycles with growth {schedule.growth} have "
                f"not a step each in the {left} steps after the warm-up: lower cycles or growth"
            )
        short = int(math.log2(self.window / length.start)) if length else 0
        if length and length.until * steps < short:
            faults.append(
                f"training.length.until {length.until:g} is {length.until * steps:.2g} of {steps} steps, not "
                f"one for each of the {short} lengths before the window's: raise it or length.start"
            )
        if skip and skip.until * steps < 1.0:
            faults.append(
                f"training.skip.until {skip.until:g} of {steps} steps is none, so that no window is skipped: "
                "raise it or training.tokens"
            )
        return faults

    def _sites_beyond_the_window(self) -> list[str]:
        faults = []
        attention, multiscale = (getattr(self.model, key, None) for key in ("attention", "multiscale"))
        shortest = min(self.window, self.training.length.start if self.training.length else self.window)
        if getattr(self.model, "koopman", None) and shortest == 1:
            faults.append(
                "training.length.start 1: model.koopman predicts the state of the next position, and a piece "
                "of one token has none: raise it or remove model.koopman"
            )
        sites, blocks = self.window, ""
        if attention and multiscale and set(attention.layers) <= set(multiscale.layers):
            sites //= multiscale.factor
            blocks = f"the {sites} blocks of multiscale in "
        if attention and attention.changed("window") and attention.window > sites:
            faults.append(
                f"model.attention.window {attention.window} is above {blocks}window {self.window}, more than "
                "there are in training: lower it"
            )
        if multiscale and 2 * multiscale.factor > shortest:
            faults.append(
                f"model.multiscale.factor {multiscale.factor} is above half of the {shortest} tokens of the "
                "shortest window, so its layers would have one whole block to see at most: lower it"
            )
        return faults

    def _inert_tokenizer(self) -> list[str]:
        models = [*self.tokenizer_models]
        given = [key for key in ("vocab_size", "corpus") if self.tokenizer.changed(key)] if models else []
        alone = models == ["training.start_from"]
        own = ", or set training.start_vocabulary to overlap for a tokenizer of its own" if alone else ""
        return [
            f"tokenizer.{key} has no effect beside {models[0]}, whose tokenizer is taken: remove it{own}"
            for key in given
        ]

    def _unsuitable_savings(self) -> list[str]:
        faults = []
        training = self.training
        if training.length:
            try:
                training.length.lengths(self.window)
            except ValueError as error:
                faults.append(str(error))
            if training.compile:
                faults.append(
                    "training.compile cannot take training.length, each length of which would be compiled "
                    "for itself: remove one"
                )
        if isinstance(training.on_divergence, SkipStep) and isinstance(
            training.gradient_compression, PowerSGD
        ):
            faults.append(
                "training.on_divergence skip cannot take training.gradient_compression powersgd, which keeps "
                "what it left out of a gradient that was not finite: take fall_back, or fp16 or bf16"
            )
        if training.token_selection and training.compile:
            faults.append(
                "training.compile cannot take training.token_selection, which computes the head in chunks: "
                "remove one"
            )
        if training.token_selection and isinstance(self.model, ImportModel):
            faults.append(
                "training.token_selection cannot take model kind import, whose output head is not known: "
                "remove it"
            )
        if training.token_selection and training.distillation:
            faults.append(
                "training.distillation cannot take training.token_selection, which never has the logits that "
                "are held against the teachers': remove one"
            )
        if training.unfreeze and self.batch_windows:
            try:
                training.unfreeze.begins(self.steps)
            except ValueError as error:
                faults.append(str(error))
        for key in ("freeze", "unfreeze", "token_selection", "gradient_cache", "average"):
            if training.parallel == "fsdp2" and getattr(training, key):
                faults.append(
                    f"training.{key} cannot take training.parallel fsdp2, which keeps no whole parameter: "
                    "set it to ddp or zero1"
                )
        return faults + unsuitable_fine_tuning(training, self.model, self.window)
