"""The augmentations of a recipe, by the class of their section."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from bkray.augmentation.apertium import Apertium
from bkray.augmentation.copies import Augmentation
from bkray.augmentation.synonym import SynonymReplacement
from bkray.augmentation.translation import BackTranslation, Translator
from bkray.augmentation.wordnet import check_data
from bkray.augmentation.words import RandomDeletion, RandomSwap
from bkray.config import preparation
from bkray.config.preparation import Deletion, HuggingFaceTranslator, Swap, Synonym

AUGMENTATIONS: dict[type, Callable[[Any, int], Augmentation]] = {
    Deletion: lambda section, seed: RandomDeletion(section.probability, seed, section.min_words),
    Swap: lambda section, seed: RandomSwap(section.probability, seed, section.min_words),
    Synonym: lambda section, seed: SynonymReplacement(section.probability, seed, section.max_share),
    preparation.BackTranslation: lambda section, seed: BackTranslation(
        build_translator(section.translator), section.lowest, section.highest
    ),
}


def build_augmentation(section: preparation.Augmentation, seed: int) -> Augmentation:
    """The augmentation that a recipe's section describes."""
    return AUGMENTATIONS[type(section)](section, seed)


def build_translator(section: preparation.Translator) -> Translator:
    """The translator that a recipe's section describes."""
    if isinstance(section, HuggingFaceTranslator):
        from bkray.augmentation.hugging_face import HuggingFace  # imports torch, which other stages spare

        return HuggingFace(section.forth, section.back)
    return Apertium(section.forth, section.back)


def check_augmentations(sections: Sequence[preparation.Augmentation]) -> None:
    """Raise UserError where data or programs that one of them needs are missing on this machine."""
    for section in sections:
        if isinstance(section, Synonym):
            check_data()
        elif isinstance(section, preparation.BackTranslation):
            build_translator(section.translator).check()
