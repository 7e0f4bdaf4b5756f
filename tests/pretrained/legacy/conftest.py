import copy
import io
import json
import tarfile
from typing import Any, Callable, Dict, Optional

import pytest
import torch
from allennlp.data import Vocabulary

WORDS = ["</S>", "<S>", "@@UNKNOWN@@", "the", "rain", "falls", "over", "grey", "hills", "and"]

READER: Dict[str, Any] = {
    "type": "simple_language_modeling",
    "tokenizer": {"type": "word", "word_splitter": {"type": "just_spaces"}},
    "token_indexers": {
        "tokens": {"type": "single_id"},
        "token_characters": {"type": "elmo_characters"},
    },
    "max_sequence_length": 60,
    "start_tokens": ["<S>"],
    "end_tokens": ["</S>"],
}
CHARACTERS: Dict[str, Any] = {
    "type": "character_encoding",
    "embedding": {"num_embeddings": 262, "embedding_dim": 4},
    "encoder": {
        "type": "cnn-highway",
        "activation": "relu",
        "embedding_dim": 4,
        "filters": [[1, 4], [2, 4], [3, 8]],
        "num_highway": 2,
        "projection_dim": 16,
        "projection_location": "after_highway",
        "do_layer_norm": True,
    },
}
CONTEXTUALIZER: Dict[str, Any] = {
    "type": "bidirectional_language_model_transformer",
    "input_dim": 16,
    "hidden_dim": 24,
    "num_layers": 2,
    "dropout": 0.1,
    "input_dropout": 0.1,
}
BUCKET: Dict[str, Any] = {
    "type": "bucket",
    "batch_size": 64,
    "sorting_keys": [["source", "num_tokens"]],
    "maximum_samples_per_batch": ["num_tokens", 300],
    "max_instances_in_memory": 512,
    "biggest_batch_first": True,
    "padding_noise": 0.2,
}
OPTIMIZER = {"type": "dense_sparse_adam"}

# As people wrote them: nothing here is modern.
CONFIGS: Dict[str, Dict[str, Any]] = {
    # 0.7: one process, flat embedder, the first model's own keys.
    "0.7": {
        "dataset_reader": {**READER, "lazy": True},
        "train_data_path": "train.txt",
        "vocabulary": {"tokens_to_add": {"tokens": ["<S>", "</S>"]}, "min_count": {"tokens": 2}},
        "model": {
            "type": "bidirectional_lm",
            "num_samples": 4,
            "sparse_embeddings": True,
            "remove_bos_eos": True,
            "do_layer_norm": False,
            "loss_scale": "n_samples",
            "text_field_embedder": {
                "allow_unmatched_keys": True,
                "token_characters": {**CHARACTERS, "type": "character-encoding"},
            },
            "contextualizer": CONTEXTUALIZER,
            "initializer": [
                [".*bias", {"type": "constant", "val": 0}],
                ["_contextualizer", "prevent"],
            ],
        },
        "iterator": {"type": "basic", "batch_size": 8},
        "trainer": {"num_epochs": 1, "cuda_device": -1, "optimizer": OPTIMIZER, "shuffle": True},
    },
    # 0.8: several processes on both sides.
    "0.8": {
        "dataset_reader": {
            "type": "multiprocess",
            "base_reader": READER,
            "num_workers": 2,
            "epochs_per_read": 1,
            "output_queue_size": 100,
        },
        "train_data_path": "train/*",
        "vocabulary": {"directory_path": "/nowhere/vocabulary"},
        "model": {
            "type": "bidirectional-language-model",
            "num_samples": 4,
            "sparse_embeddings": False,
            "dropout": 0.1,
            "text_field_embedder": {
                "allow_unmatched_keys": True,
                "token_embedders": {"token_characters": CHARACTERS},
            },
            "contextualizer": CONTEXTUALIZER,
        },
        "iterator": {
            "type": "multiprocess",
            "base_iterator": BUCKET,
            "num_workers": 2,
            "output_queue_size": 100,
        },
        "trainer": {
            "num_epochs": 1,
            "cuda_device": [0, 1],
            "optimizer": OPTIMIZER,
            "learning_rate_scheduler": {"type": "noam", "model_size": 16, "warmup_steps": 10},
            "should_log_learning_rate": True,
            "num_serialized_models_to_keep": 2,
        },
    },
    # 0.9: no sampling, the name without "bidirectional", an empty embedder.
    "0.9": {
        "dataset_reader": READER,
        "train_data_path": "train.txt",
        "validation_data_path": "validation.txt",
        "vocabulary": {"directory_path": "/nowhere/vocabulary", "extend": False},
        "model": {
            "type": "language_model",
            "bidirectional": True,
            "dropout": 0.1,
            "text_field_embedder": {
                "token_embedders": {"tokens": {"type": "empty"}, "token_characters": CHARACTERS},
                "embedder_to_indexer_map": {
                    "tokens": ["tokens"],
                    "token_characters": ["token_characters"],
                },
            },
            "contextualizer": CONTEXTUALIZER,
        },
        "iterator": BUCKET,
        "validation_iterator": {"type": "basic", "batch_size": 4},
        "trainer": {
            "num_epochs": 1,
            "cuda_device": [0],
            "optimizer": OPTIMIZER,
            "summary_interval": 10,
            "histogram_interval": 50,
            "log_batch_size_period": 5,
            "should_log_parameter_statistics": False,
            "model_save_interval": 600,
            "keep_serialized_model_every_num_seconds": 3600,
        },
    },
    "tagger": {
        "dataset_reader": {
            "type": "sequence_tagging",
            "lazy": True,
            "token_indexers": {
                "tokens": {"type": "single_id"},
                "characters": {"type": "elmo_characters"},
            },
        },
        "train_data_path": "train.tsv",
        "validation_data_path": "validation.tsv",
        "model": {
            "type": "simple_tagger",
            "text_field_embedder": {
                "tokens": {"type": "embedding", "embedding_dim": 4},
                "elmo": {
                    "type": "bidirectional_lm_token_embedder",
                    "archive_file": "lm.tar.gz",
                    "bos_eos_tokens": ["<S>", "</S>"],
                    "remove_bos_eos": True,
                },
                "embedder_to_indexer_map": {"tokens": ["tokens"], "elmo": ["characters"]},
            },
            "encoder": {"type": "lstm", "input_size": 36, "hidden_size": 8},
            "regularizer": [["scalar_parameters", {"type": "l2", "alpha": 0.1}]],
        },
        "iterator": {
            "type": "bucket",
            "sorting_keys": [["tokens", "num_tokens"]],
            "batch_size": 4,
            "padding_noise": 0.0,
            "instances_per_epoch": 10,
        },
        "trainer": {
            "num_epochs": 1,
            "cuda_device": -1,
            "optimizer": "adam",
            "gradient_accumulation_batch_size": 8,
        },
    },
}


@pytest.fixture
def old_configs() -> Dict[str, Dict[str, Any]]:
    return copy.deepcopy(CONFIGS)


@pytest.fixture
def vocabulary(tmp_path) -> Vocabulary:
    directory = tmp_path / "words"
    directory.mkdir()
    (directory / "tokens.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    (directory / "non_padded_namespaces.txt").write_text("*labels\n*tags\n", encoding="utf-8")
    return Vocabulary.from_files(directory)


@pytest.fixture
def write_archive(tmp_path) -> Callable[..., Any]:
    """Writes an archive as AllenNLP 0.x did: no meta file, weights in torch's first format."""

    def write(
        name: str,
        config: Dict[str, Any],
        weights: Dict[str, torch.Tensor],
        vocabulary: Vocabulary,
        files: Optional[Dict[str, str]] = None,
    ) -> Any:
        folder = tmp_path / f"{name}-vocabulary"
        vocabulary.save_to_files(str(folder))
        archive = tmp_path / f"{name}.tar.gz"
        saved = io.BytesIO()
        torch.save(weights, saved, _use_new_zipfile_serialization=False)
        with tarfile.open(archive, "w:gz") as tar:
            _add(tar, "config.json", json.dumps(config).encode())
            _add(tar, "weights.th", saved.getvalue())
            tar.add(folder, arcname="vocabulary")
            for key, file in (files or {}).items():
                tar.add(file, arcname=f"fta/{key}")
            if files:
                _add(tar, "files_to_archive.json", json.dumps(files).encode())
        return archive

    return write


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
