"""The augmentations of a recipe, by the class of their section."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from bkray.augmentation.synonym import SynonymReplacement
from bkray.augmentation.wordnet import check_data
from bkray.augmentation.words import RandomDeletion, RandomSwap, WordAugmentation
from bkray.config.preparation import Augmentation, Deletion, Swap, Synonym

AUGMENTATIONS: dict[type, Callable[[Any, int], WordAugmentation]] = {
    Deletion: lambda section, seed: RandomDeletion(section.probability, seed),
    Swap: lambda section, seed: RandomSwap(section.probability, seed),
    Synonym: lambda section, seed: SynonymReplacement(section.probability, seed, section.max_share),
}


def build_augmentation(section: Augmentation, seed: int) -> WordAugmentation:
    """The augmentation that a recipe's section describes."""
    return AUGMENTATIONS[type(section)](section, seed)


def check_augmentations(sections: Sequence[Augmentation]) -> None:
    """Raise UserError where data that one of them needs is missing on this machine."""
    if any(isinstance(section, Synonym) for section in sections):
        check_data()
