"""The draft model: fusion, decoder, vocabulary map. PyTorch only; layers and attention can be handed in."""

from eagle3_serving.drafter.config import DrafterConfig, RopeConfig
from eagle3_serving.drafter.layers import Attend, LayerFactory
from eagle3_serving.drafter.model import Drafter, DraftStep
from eagle3_serving.drafter.vocabulary import DraftVocabulary

__all__ = ["Attend", "DraftStep", "DraftVocabulary", "Drafter", "DrafterConfig", "LayerFactory", "RopeConfig"]
