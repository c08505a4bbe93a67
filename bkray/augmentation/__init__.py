"""Text augmentation: documents in, a changed copy of each out."""

from bkray.augmentation.build import AUGMENTATIONS, build_augmentation, check_augmentations
from bkray.augmentation.copies import Augmentation
from bkray.augmentation.synonym import SynonymReplacement
from bkray.augmentation.translation import BackTranslation, Translator
from bkray.augmentation.words import RandomDeletion, RandomSwap

__all__ = [
    "AUGMENTATIONS",
    "Augmentation",
    "BackTranslation",
    "RandomDeletion",
    "RandomSwap",
    "SynonymReplacement",
    "Translator",
    "build_augmentation",
    "check_augmentations",
]
