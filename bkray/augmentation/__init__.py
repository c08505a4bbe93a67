"""Text augmentation: documents in, one changed copy of each out."""

from bkray.augmentation.build import AUGMENTATIONS, build_augmentation, check_augmentations
from bkray.augmentation.synonym import SynonymReplacement
from bkray.augmentation.words import RandomDeletion, RandomSwap

__all__ = [
    "AUGMENTATIONS",
    "RandomDeletion",
    "RandomSwap",
    "SynonymReplacement",
    "build_augmentation",
    "check_augmentations",
]
