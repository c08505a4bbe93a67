"""What mixes the sites of a sequence: a module x (B, N, d) -> (B, N, d), causal, and its step by step form.

spectral.py    the causal resolvent by gates and phases, and the real gated recurrence without phases
potential.py   the causal resolvent from a learned potential, and the bare diagonal of it as features
attention.py   softmax attention, over all sites before or a window of them
gru.py         the gated recurrent unit
"""

from bkray.model.mixers.attention import Attention, ConvolvedAttention
from bkray.model.mixers.gru import GRUMixer
from bkray.model.mixers.potential import DiagonalMixer, PotentialMixer
from bkray.model.mixers.spectral import GatedMixer, SpectralMixer

__all__ = [
    "Attention",
    "ConvolvedAttention",
    "DiagonalMixer",
    "GRUMixer",
    "GatedMixer",
    "PotentialMixer",
    "SpectralMixer",
]
