"""A language model of the billion-word model's shape, made small, and what goes with it."""

import copy
import json
import random
import tarfile
from pathlib import Path
from typing import Any, Dict, List, Optional

import torch
from allennlp.common import Params
from allennlp.data import Batch, DatasetReader, TensorDict, Vocabulary
from allennlp.models import Model

WORDS = (
    "the a cat dog bird sat ran flew on under over mat house tree and then it was very happy sad"
    " tired naïve 東京 Москва don't well-known 42 ! . ,"
    " extraordinarily-long-word-of-more-than-fifty-characters-in-it"
).split()

DIM = 32


def random_sentences(count: int, seed: int = 0, longest: int = 12) -> List[str]:
    generator = random.Random(seed)
    return [
        " ".join(generator.choices(WORDS, k=generator.randint(1, longest))) for _ in range(count)
    ]


def model_config(**changes: Any) -> Dict[str, Any]:
    """The billion-word model's section, made small."""
    config: Dict[str, Any] = {
        "type": "bidirectional_language_model",
        "num_samples": 8,
        "sparse_embeddings": True,
        "text_field_embedder": {
            "token_embedders": {
                "tokens": {"type": "empty"},
                "token_characters": {
                    "type": "character_encoding",
                    "embedding": {"num_embeddings": 262, "embedding_dim": 8},
                    "encoder": {
                        "type": "cnn-highway",
                        "activation": "relu",
                        "embedding_dim": 8,
                        "filters": [[1, 8], [2, 8], [3, 16], [5, 8]],
                        "num_highway": 2,
                        "projection_dim": DIM,
                        "projection_location": "after_highway",
                        "do_layer_norm": True,
                    },
                },
            }
        },
        "contextualizer": {
            "type": "bidirectional_language_model_transformer",
            "input_dim": DIM,
            "hidden_dim": 64,
            "num_layers": 2,
            "dropout": 0.1,
            "input_dropout": 0.1,
        },
    }
    config.update(changes)
    return copy.deepcopy(config)


def with_squared_relu(**changes: Any) -> Dict[str, Any]:
    """`model_config` with an activation that allennlp-models doesn't know."""
    config = model_config(**changes)
    config["contextualizer"]["activation"] = "relu_squared"
    return config


def reader_config() -> Dict[str, Any]:
    return {
        "type": "simple_language_modeling",
        "tokenizer": {"type": "just_spaces"},
        "token_indexers": {
            "tokens": {"type": "single_id"},
            "token_characters": {"type": "elmo_characters"},
        },
        "max_sequence_length": 400,
        "start_tokens": ["<S>"],
        "end_tokens": ["</S>"],
    }


def experiment_config(**changes: Any) -> Dict[str, Any]:
    config = {
        "dataset_reader": reader_config(),
        "train_data_path": "train.txt",
        "data_loader": {"type": "language_modeling", "max_tokens": 200},
        "model": model_config(),
        "trainer": {"num_epochs": 1, "optimizer": "dense_sparse_adam"},
    }
    config.update(changes)
    return config


def write_archive(folder: Path, config: Dict[str, Any], model: Model) -> Path:
    """What `allennlp train` leaves behind."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    model.vocab.save_to_files(str(folder / "vocabulary"))
    torch.save(model.state_dict(), folder / "weights.th")
    path = folder / "model.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name in ("config.json", "vocabulary", "weights.th"):
            archive.add(folder / name, arcname=name)
    return path


def tensors(
    sentences: List[str], vocabulary: Vocabulary, config: Optional[Dict[str, Any]] = None
) -> TensorDict:
    """A batch by AllenNLP's own way, from a reader's config."""
    reader = DatasetReader.from_params(Params(copy.deepcopy(config or reader_config())))
    batch = Batch([reader.text_to_instance(sentence) for sentence in sentences])
    for instance in batch:
        reader.apply_token_indexers(instance)
    batch.index_instances(vocabulary)
    return batch.as_tensor_dict()
