"""Text augmentation: documents in, one changed copy of each out."""

from bkray.augmentation.words import AUGMENTATIONS, RandomDeletion, RandomSwap, build_augmentation

__all__ = ["AUGMENTATIONS", "RandomDeletion", "RandomSwap", "build_augmentation"]
