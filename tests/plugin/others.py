"""
What `test_others` runs in two processes, one of which imports this package: `allennlp` commands
with models that aren't ours, each in a fork with standard streams and an exit code of its own.

    python others.py OUT with|without
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
from typing import Any, Dict, Optional

import allennlp_models.tagging  # noqa: F401
import torch
from allennlp.data import Token
from allennlp.models import SimpleTagger
from allennlp.predictors import Predictor
from allennlp.training.callbacks import TrainerCallback

WORDS = "the a cat dog sat ran naïve 東京 mat .".split()


@Predictor.register("words")
class WordsPredictor(Predictor):
    def _json_to_instance(self, json_dict: Dict[str, Any]) -> Any:
        text = json_dict["text"]
        tags = isinstance(self._model, SimpleTagger)
        return self._dataset_reader.text_to_instance(
            [Token(word) for word in text.split()] if tags else text
        )


@TrainerCallback.register("trouble")
class Trouble(TrainerCallback):
    """Ctrl-C, or weights that are no numbers, once there is an epoch to fall back on."""

    def __init__(self, serialization_dir: str, kind: str) -> None:
        super().__init__(serialization_dir)
        self.kind = kind

    def on_batch(  # type: ignore[override]
        self,
        trainer: Any,
        inputs: Any,
        outputs: Any,
        metrics: Any,
        epoch: int,
        *rest: Any,
        **kw: Any,
    ) -> None:
        if epoch != 1:
            return
        if self.kind == "interrupted":
            os.kill(os.getpid(), signal.SIGINT)
        else:
            torch.nn.init.constant_(next(trainer.model.parameters()), float("nan"))


def config(kind: str, folder: Path, **trainer: Any) -> Path:
    reader: Dict[str, Any] = {"type": "sequence_tagging"}
    encoder = {"type": "lstm", "input_size": 1000, "hidden_size": 50}
    model: Dict[str, Any] = {"type": "simple_tagger", "encoder": encoder}
    if kind == "classifier":
        reader = {"type": "text_classification_json", "tokenizer": {"type": "just_spaces"}}
        encoder = {"type": "boe", "embedding_dim": 1000}
        model = {"type": "basic_classifier", "seq2vec_encoder": encoder}
    embedder = {"token_embedders": {"tokens": {"type": "embedding", "embedding_dim": 1000}}}
    content = {
        "dataset_reader": reader,
        "train_data_path": str(folder / f"{kind}.data"),
        "validation_data_path": str(folder / f"{kind}.data"),
        "model": {**model, "text_field_embedder": embedder},
        "data_loader": {"batch_size": 4, "shuffle": True},
        "trainer": {"num_epochs": 2, "optimizer": "adam", "cuda_device": -1, **trainer},
    }
    path = folder / f"{kind}_{len(list(folder.iterdir()))}.json"
    path.write_text(json.dumps(content))
    return path


def write_data(folder: Path) -> None:
    generator = random.Random(0)
    sentences = [generator.choices(WORDS, k=generator.randint(1, 8)) for _ in range(16)]
    tagged = [" ".join(f"{w}###{'XY'[len(w) % 2]}" for w in s) for s in sentences]
    (folder / "tagger.data").write_text("\n".join(tagged))
    lines = [{"text": " ".join(s), "label": "XY"[len(s) % 2]} for s in sentences]
    (folder / "classifier.data").write_text("\n".join(map(json.dumps, lines)))
    (folder / "input").write_text('{"text": "naïve 東京"}', encoding="utf-8")


def run(name: str, *arguments: Any, largest_file: Optional[int] = None) -> None:
    """Runs a command in a fork, and writes down how it ended."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        Path(f"{name}.code").write_text(str(os.waitstatus_to_exitcode(status)))
        return
    for number, stream in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(f"{name}.{stream}", os.O_WRONLY | os.O_CREAT), number)
    sys.argv = ["allennlp", *map(str, arguments)]
    if largest_file is not None:
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


def commands(here: Path) -> None:
    write_data(here)
    for kind in ("tagger", "classifier"):
        folder, archive = f"{kind}_run", f"{kind}_run/model.tar.gz"
        run(f"{kind}_train", "train", config(kind, here), "-s", folder)
        run(f"{kind}_again", "train", config(kind, here), "-s", folder)
        run(f"{kind}_recover", "train", f"{folder}/config.json", "-s", folder, "--recover")
        outputs = ["--output-file", f"{kind}.metrics", "--predictions-output-file", f"{kind}.out"]
        overrides = ["-o", '{"trainer.num_epochs": 3}']
        run(f"{kind}_evaluate", "evaluate", archive, f"{kind}.data", *outputs, *overrides)
        inputs = [archive, "input", "--predictor", "words"]
        run(f"{kind}_predict", "predict", *inputs, "--output-file", f"{kind}.predicted")
        run(f"{kind}_unwritable", "predict", *inputs, "--output-file", "nowhere/file")
        for name, value in (("text_field_embedder.token_embedders", "x"), ("bogus", 1)):
            wrong = ["-o", json.dumps({f"model.{name}": value})]
            run(f"{kind}_{name}", "train", config(kind, here), "-s", f"{kind}_{name}", *wrong)
        for trouble in ("interrupted", "nan"):
            path = config(kind, here, callbacks=[{"type": "trouble", "kind": trouble}])
            run(f"{kind}_{trouble}", "train", path, "-s", f"{kind}_{trouble}_run")
        full = ["train", config(kind, here), "-s", f"{kind}_full_run"]
        run(f"{kind}_full", *full, largest_file=30000)


if __name__ == "__main__":
    torch.set_num_threads(1)
    os.chdir(sys.argv[1])
    if sys.argv[2] == "with":
        import transformer_elmo  # noqa: F401
    commands(Path())
