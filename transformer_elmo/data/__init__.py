"""
From text on disk to padded tensors.
"""

from transformer_elmo.data.data_loader import LanguageModelingDataLoader
from transformer_elmo.data.dataset_reader import SimpleLanguageModelingDatasetReader

__all__ = ["LanguageModelingDataLoader", "SimpleLanguageModelingDatasetReader"]
