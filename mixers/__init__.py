"""Online experts and the mixers that combine them. Imports neither torch nor the other packages."""

from evalkit.mixers.config import MixerConfig, best_config, default_config
from evalkit.mixers.mixer import Mixer

__all__ = ["Mixer", "MixerConfig", "best_config", "default_config"]
