"""
What `test_others` runs in two processes, one of which imports this package: `allennlp` commands
with a tagger and a classifier that aren't ours, each in a fork with standard streams and an exit
code of its own.

    python allennlp OUT with|without
"""

import json
import os
import random
import resource
import runpy
import signal
import sys
import traceback
from pathlib import Path
from typing import Any, Dict

import allennlp_models.tagging  # noqa: F401
import torch
from allennlp.data import Token
from allennlp.predictors import Predictor
from allennlp.training.callbacks import TrainerCallback

WORDS = "the a cat dog sat ran naïve 東京 mat .".split()


@Predictor.register("words")
class WordsPredictor(Predictor):
    def _json_to_instance(self, json_dict: Dict[str, Any]) -> Any:
        return self._dataset_reader.text_to_instance([*map(Token, json_dict["text"].split())])


@TrainerCallback.register("trouble")
class Trouble(TrainerCallback):
    """Ctrl-C, or weights that are no numbers, once there is an epoch to fall back on."""

    def __init__(self, serialization_dir: str, kind: str) -> None:
        super().__init__(serialization_dir)
        self.kind = kind

    def on_batch(self, trainer: Any, *args: Any, **kwargs: Any) -> None:
        if trainer._epochs_completed == 0:
            return
        if self.kind == "interrupted":
            os.kill(os.getpid(), signal.SIGINT)
        torch.nn.init.constant_(next(trainer.model.parameters()), float("nan"))


def write_config(name: str, **trainer: Any) -> str:
    embedder = {"type": "embedding", "embedding_dim": 1000}
    content = {
        "dataset_reader": {"type": "sequence_tagging"},
        "train_data_path": "data",
        "validation_data_path": "data",
        "model": {
            "type": "simple_tagger",
            "encoder": {"type": "lstm", "input_size": 1000, "hidden_size": 50},
            "text_field_embedder": {"token_embedders": {"tokens": embedder}},
        },
        "data_loader": {"batch_size": 4, "shuffle": True},
        "trainer": {"num_epochs": 2, "optimizer": "adam", "cuda_device": -1, **trainer},
    }
    Path(f"{name}.json").write_text(json.dumps(content))
    return f"{name}.json"


def write_classifier_config() -> str:
    content = json.loads(Path("config.json").read_text())
    encoder = {"type": "bag_of_embeddings", "embedding_dim": 1000}
    del content["model"]["encoder"]
    content["model"].update(type="basic_classifier", seq2vec_encoder=encoder)
    content["dataset_reader"] = {"type": "text_classification_json", "tokenizer": "just_spaces"}
    content.update(train_data_path="texts", validation_data_path="texts")
    Path("classifier.json").write_text(json.dumps(content))
    return "classifier.json"


def run(name: str, *arguments: str, largest_file: int = resource.RLIM_INFINITY) -> None:
    """Runs a command in a fork, and writes down how it ended."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        Path(f"{name}.code").write_text(str(os.waitstatus_to_exitcode(status)))
        return
    for number, stream in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(f"{name}.{stream}", os.O_WRONLY | os.O_CREAT), number)
    sys.argv = ["allennlp", *arguments]
    # In the background of a shell, Ctrl-C would be ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    code = 0
    try:
        runpy.run_module("allennlp", run_name="__main__")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        Path(f"{name}.error").write_text("".join(traceback.format_exception_only(error)))
        code = 130 if isinstance(error, KeyboardInterrupt) else 1
    sys.stdout.flush()
    os._exit(code)


def commands() -> None:
    generator = random.Random(0)
    sentences = [generator.choices(WORDS, k=generator.randint(1, 8)) for _ in range(16)]
    tagged = (" ".join(f"{w}###{'XY'[len(w) % 2]}" for w in s) for s in sentences)
    Path("data").write_text("\n".join(tagged))
    Path("input").write_text('{"text": "naïve 東京"}')
    config, archive = write_config("config"), "run/model.tar.gz"
    run("train", "train", config, "-s", "run")
    run("again", "train", config, "-s", "run")
    run("recover", "train", "run/config.json", "-s", "run", "--recover")
    outputs = ["--output-file", "metrics", "--predictions-output-file", "predictions"]
    run("evaluate", "evaluate", archive, "data", *outputs, "-o", '{"trainer.num_epochs": 3}')
    inputs = [archive, "input", "--predictor", "words", "--output-file", "predicted"]
    run("predict", "predict", *inputs)
    run("wrong", "train", config, "-s", "wrong_run", "-o", '{"model.encoder.hidden_size": "x"}')
    run("unknown", "train", config, "-s", "unknown_run", "-o", '{"model.bogus": 1}')
    for kind in ("interrupted", "nan"):
        config = write_config(kind, callbacks=[{"type": "trouble", "kind": kind}])
        run(kind, "train", config, "-s", f"{kind}_run")
    texts = ({"text": " ".join(s), "sentence": " ".join(s), "label": s[0]} for s in sentences)
    Path("texts").write_text("\n".join(map(json.dumps, texts)))
    archive = "classes/model.tar.gz"
    run("classify", "train", write_classifier_config(), "-s", "classes")
    run("classified", "evaluate", archive, "texts", "--output-file", "metrics_of_classes")
    run("classes", "predict", archive, "texts", "--output-file", "predicted_classes")
    run("full", "train", "config.json", "-s", "full_run", largest_file=30000)


if __name__ == "__main__":
    torch.set_num_threads(1)
    os.chdir(sys.argv[1])
    if sys.argv[2] == "with":
        import transformer_elmo  # noqa: F401
    commands()
