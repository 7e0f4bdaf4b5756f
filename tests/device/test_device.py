"""
On a device everything computes what it computes on the CPU: on a pretended one, which every machine
has and which tells when devices are mixed or the host waits, and on a GPU where there is one.
"""

import copy
import json
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, Dict, List

import numpy as np
import pytest
import torch
from allennlp.commands.train import train_model
from allennlp.common import Params
from allennlp.models import load_archive
from allennlp.modules.token_embedders import TokenEmbedder
from allennlp.predictors import Predictor
from allennlp.training.optimizers import Optimizer

from tests.device.pretend import PretendTensor, launches, moved, pretend_device, waits
from tests.nn.kernels.comparing import close
from tests.plugin.test_evaluator import loader
from tests.small_lm import (
    experiment_config,
    model_config,
    random_sentences,
    tensors,
    with_squared_relu,
)
from transformer_elmo import (
    CrashSafeCheckpointer,
    LanguageModelingEvaluator,
    LanguageModelTrainer,
    TransformerElmo,
)
from transformer_elmo.inference.evaluation import Totals
from transformer_elmo.nn.kernels import attention, character_cnn
from transformer_elmo.plugin.text_fields import FACTS
from transformer_elmo.plugin.training.bad_steps import BadSteps

PADDED = ["the cat sat on the mat", "it was", "dog", "a 東京 flew . tree and then"]

SENTENCES = random_sentences(60)

CPU = torch.device("cpu")
DENSE: Dict[str, Any] = {"sparse_embeddings": False}
EXACT: Dict[str, Any] = {**DENSE, "num_samples": None}
BFLOAT16 = {"precision": "bfloat16"}
ADAM = {"type": "dense_sparse_adam", "lr": 0.01}
MUON = {"type": "muon_sparse_adam", "lr": 0.01}

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(params=["pretended", pytest.param("cuda", marks=needs_gpu)])
def device(request, monkeypatch):
    """A device, for as long as the test lasts."""
    if request.param == "cuda":
        monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
        yield torch.device("cuda", 0)
        return
    for module in ("allennlp.training.trainer", "transformer_elmo.plugin.evaluator"):
        monkeypatch.setattr(f"{module}.check_for_gpu", lambda *_: None)
    with pretend_device() as device, torch.serialization.safe_globals([PretendTensor]):
        yield device


@pytest.fixture
def pretended():
    with pretend_device() as device:
        yield device


def numbers(tensor):
    return getattr(tensor, "held", tensor).detach().cpu().to_dense().float()


def fixed(model):
    """Without dropout, and its samples are always the same."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    drawn = torch.tensor([1, 2, 5, 6, 9, 12, 20, 21]), torch.tensor(8.0).log()
    model._softmax_loss.draw = lambda device: tuple(part.to(device) for part in drawn)
    return model


def pair(make_model, device, **changes):
    """The same model, here and there."""
    return fixed(make_model(**changes)), moved(fixed(make_model(**changes)), device)


def assert_same_gradients(here, there, tolerance=1e-4):
    for (name, one), other in zip(here.named_parameters(), there.parameters()):
        assert (one.grad is None) == (other.grad is None), name
        if one.grad is not None:
            one, other = numbers(one.grad), numbers(other.grad)
            assert close(other, one, tolerance * float(one.abs().max().clamp(1e-3, 1))), name


def make_loader(corpus, vocabulary, device=CPU, **options):
    options = {"max_tokens": 100, "distinct_words": True, **options}
    made = loader(corpus, vocabulary, **options)
    made.set_target_device(device)
    return made


def make_optimizer(model, options):
    named = list(model.named_parameters())
    return Optimizer.from_params(Params({"model_parameters": named, **options}))


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n".join(random_sentences(32, seed=9)), encoding="utf-8")
    return str(path)


# Training.


@pytest.mark.parametrize("changes", [{}, DENSE, EXACT, with_squared_relu()])
@pytest.mark.parametrize("training", [False, True])
def test_losses_and_gradients(make_model, vocabulary, device, changes, training):
    here, there = pair(make_model, device, **changes)
    batch = tensors(PADDED, vocabulary)
    one, other = here.train(training)(**batch), there.train(training)(**moved(batch, device))
    for name in ("loss", "forward_loss", "backward_loss"):
        assert torch.allclose(numbers(other[name]), numbers(one[name]), rtol=1e-5, atol=0), name
    vectors, expected = (numbers(output["lm_embeddings"]) for output in (other, one))
    assert torch.allclose(vectors, expected, atol=1e-4)
    one["loss"].backward()
    other["loss"].backward()
    assert_same_gradients(here, there)


@pytest.mark.parametrize("way", ["bfloat16", "float16 by autocast"])
def test_half_precision(make_model, vocabulary, device, way):
    """`use_amp` is made of the second, and scales the loss."""
    exact, there = pair(make_model, device)
    context: Any = torch.autocast(device.type, dtype=torch.float16)
    if way == "bfloat16":
        there.precision, context = way, nullcontext()
    batch = tensors(PADDED, vocabulary)
    expected = exact.train()(**batch)["loss"]
    with context:
        loss = there.train()(**moved(batch, device))["loss"]
    assert float(numbers(loss)) == pytest.approx(float(numbers(expected)), rel=0.01)
    expected.backward()
    loss.backward()
    ours, theirs = (
        torch.cat([numbers(p.grad).flatten() for p in model.parameters() if p.grad is not None])
        for model in (there, exact)
    )
    assert float((ours - theirs).norm() / theirs.norm()) < (0.05 if way == "bfloat16" else 0.01)


@pytest.mark.parametrize(
    "optimizer, changes",
    [
        (ADAM, {}),
        (ADAM, BFLOAT16),
        (ADAM, EXACT),
        (MUON, BFLOAT16),
        ({"type": "adam", "lr": 0.01}, DENSE),
        ({"type": "sgd", "lr": 0.1, "momentum": 0.9}, {**EXACT, **BFLOAT16}),
    ],
)
def test_training_steps(make_model, vocabulary, device, optimizer, changes):
    models = pair(make_model, device, **changes)
    batches, losses = [tensors(random_sentences(6, seed=n), vocabulary) for n in range(2)], []
    for model, sources in zip(models, (batches, [moved(batch, device) for batch in batches])):
        optimize = make_optimizer(model, optimizer)
        for source in sources:
            optimize.zero_grad()
            loss = model.train()(**source)["loss"]
            loss.backward()
            optimize.step()
            losses.append(float(numbers(loss)))
    exact = "precision" not in changes
    assert losses[2:] == pytest.approx(losses[:2], rel=1e-5 if exact else 2e-2)
    for (name, one), other in zip(models[0].named_parameters(), models[1].parameters()):
        # Adam makes long steps of small gradients. That of a key's bias is nothing but rounding: it
        # adds the same to all scores of a query.
        if exact and not name.endswith("linears.1.bias"):
            assert (numbers(one) - numbers(other)).abs().median() < 1e-6, name


def test_a_bad_step_has_no_effect(make_model, vocabulary, device):
    model = moved(make_model(), device).train()
    optimizer, bad_steps = make_optimizer(model, ADAM), BadSteps()
    trainer: Any = SimpleNamespace(
        **dict.fromkeys(("_scaler", "_ddp_wrapped_model", "_serialization_dir")),
        **dict.fromkeys(("_epochs_completed", "_batches_in_epoch_completed"), 1),
        **{"model": model, "_pytorch_model": model, "optimizer": optimizer},
    )
    batch, seen = moved(tensors(PADDED, vocabulary), device), []
    for factor in (1.0, float("inf"), 1.0):
        optimizer.zero_grad()
        output = model(**batch)
        output["loss"] = output["loss"] * factor
        bad_steps.guard(batch, output)
        output["loss"].backward()
        bad_steps.check(trainer)
        optimizer.step()
        assert not bad_steps.settle(trainer)
        assert bad_steps.in_a_row == (factor != 1.0)
        weights = [numbers(parameter).clone() for parameter in model.parameters()]
        seen.append([*weights, torch.tensor([s["step"] for s in optimizer.state.values()])])
    before, after, then = seen
    assert all(map(torch.equal, before, after)) and not any(map(torch.equal, after, then))


def test_checkpoint_and_resume(make_model, vocabulary, corpus, tmp_path, device):
    """Our trainer, with clipping; stopped after one of its two epochs, and not stopped."""
    ends = []
    for name, where, epochs in (
        ("here", CPU, [2]),
        ("whole", device, [2]),
        ("stopped", device, [1, 2]),
    ):
        folder = tmp_path / name
        folder.mkdir()
        for num_epochs in epochs:
            model = moved(fixed(make_model()), where)
            LanguageModelTrainer(
                model,
                make_optimizer(model, ADAM),
                make_loader(corpus, vocabulary, shuffle=False),
                num_epochs=num_epochs,
                cuda_device=where,
                serialization_dir=str(folder),
                checkpointer=CrashSafeCheckpointer(str(folder), keep_most_recent_by_count=None),
                grad_norm=1.0,
                enable_default_callbacks=False,
            ).train()
        ends.append([numbers(parameter) for parameter in model.parameters()])
    here, whole, stopped = ends
    same = 1e-6 if device.type != "cuda" else 5e-2
    assert all(torch.allclose(a, b, atol=same) for a, b in zip(whole, stopped))
    assert all((a - b).abs().median() < 1e-3 for a, b in zip(here, whole))


@needs_gpu
@pytest.mark.parametrize(
    "trainer", [{"use_amp": True}, {"moving_average": {"type": "exponential", "decay": 0.9}}]
)
def test_trainer_options(tmp_path, corpus, trainer):
    config = experiment_config(train_data_path=corpus, validation_data_path=corpus)
    config["trainer"].update(cuda_device=0, validation_metric="-perplexity", **trainer)
    train_model(Params(config), str(tmp_path / "out"))
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert np.isfinite(metrics["best_validation_perplexity"])


# Vectors and scores.


EMBEDDERS: List[Dict[str, Any]] = [
    *({}, {"layers": "top"}, {"layers": 0}, {"dropout": 0.3}, {"requires_grad": True}, BFLOAT16),
    *({"max_tokens_per_forward": 8}, {"remove_bos_eos": False, "bos_eos_tokens": None}),
]


@pytest.mark.parametrize("options", EMBEDDERS)
def test_token_embedder(lm_archive, vocabulary, device, options):
    params = {"type": "bidirectional_lm_token_embedder", "archive_file": str(lm_archive), **options}
    batch = tensors(PADDED, vocabulary)["source"]["token_characters"]["elmo_tokens"]
    here, there = (
        TokenEmbedder.from_params(Params(copy.deepcopy(params)), vocab=vocabulary).eval()
        for _ in range(2)
    )
    vectors, found = here(batch), moved(there, device)(moved(batch, device))
    exact = options is not BFLOAT16
    assert torch.allclose(numbers(found), numbers(vectors), atol=1e-4 if exact else 5e-2)
    if vectors.requires_grad:
        vectors.square().mean().backward()
        found.square().mean().backward()
    if exact:
        assert_same_gradients(here, there, 1e-3)


@pytest.fixture
def elmos(lm_archive, device):
    here, there = (TransformerElmo.open(lm_archive, device="cpu") for _ in range(2))
    moved(there.model, device)
    return here, there


@pytest.mark.parametrize("layers", ["mix", "all", "top", 0, -1])
def test_vectors(elmos, layers, device):
    here, there = (elmo.embed([*SENTENCES, ""], layers) for elmo in elmos)
    for one, other in zip(here, there, strict=True):
        assert isinstance(other, np.ndarray) and np.allclose(one, other, atol=1e-4)
    padded, mask = elmos[1].embed_padded(SENTENCES[:5], layers)
    assert padded.device == mask.device == device


@needs_gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_compiled_scores(lm_archive, precision):
    options = {"device": "cuda", "precision": precision, "compile": True}
    compiled = TransformerElmo.open(lm_archive, **options).perplexity(SENTENCES)
    expected = TransformerElmo.open(lm_archive, device="cpu").perplexity(SENTENCES)
    assert compiled == pytest.approx(expected, rel=1e-5 if precision == "float32" else 1e-2)


def test_scores(elmos):
    expected, found = (elmo.score(SENTENCES[:20], top_k=3) for elmo in elmos)
    for one, other in zip(expected, found, strict=True):
        for name in ("forward", "backward", "combined"):
            # `None`, where there is nothing to predict, is no number.
            a, b = (np.array(getattr(s, name).log_probs, float) for s in (one, other))
            assert np.allclose(a, b, atol=1e-4, equal_nan=True)
    fills = [[c.probability for c in elmo.fill("the cat ___ on the mat")] for elmo in elmos]
    assert fills[1] == pytest.approx(fills[0], rel=1e-3)
    perplexities = [elmo.perplexity(SENTENCES) for elmo in elmos]
    assert perplexities[1] == pytest.approx(perplexities[0], rel=1e-5)


def test_evaluator_and_predictor(lm_archive, vocabulary, corpus, tmp_path, device):
    results = []
    for where in (CPU, device):
        archive, path = load_archive(str(lm_archive)), tmp_path / f"{where.type}.jsonl"
        moved(archive.model, where)
        metrics = LanguageModelingEvaluator(cuda_device=where)(
            archive.model, make_loader(corpus, vocabulary), predictions_output_file=path
        )
        lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        predictor = Predictor.from_archive(archive)
        lines += predictor.predict_batch_json([{"sentence": "the cat sat"}, {"tokens": ["a"]}])
        results.append([*metrics.values(), *(line["perplexity"] for line in lines)])
    assert results[1] == pytest.approx(results[0], rel=1e-5)


@pytest.mark.parametrize("options", [{}, {"distinct_words": False}])
def test_loader_sends_what_the_cpu_gets(corpus, vocabulary, device, options):
    waits.clear()
    there = list(make_loader(corpus, vocabulary, device, **options))
    assert not waits
    for one, other in zip(make_loader(corpus, vocabulary, **options), there, strict=True):
        for name, entry in one["source"].items():
            for key in entry.keys() - {FACTS}:
                arrived = other["source"][name][key]
                assert arrived.device == device
                assert torch.equal(entry[key].float(), numbers(arrived))


# What a device is sent, and when the host waits for it.


@pytest.mark.parametrize("optimizer, most", [(ADAM, 40), (MUON, 130)])
def test_a_training_step_never_waits(
    make_model, vocabulary, corpus, pretended, monkeypatch, optimizer, most
):
    """With our loader and optimizer; and what a device is sent is what it was."""
    # Each kernel takes the way of a device.
    monkeypatch.setattr(attention, "written_out_attention", None)
    monkeypatch.setattr(character_cnn, "_width_by_width", None)
    section = {**model_config()["contextualizer"], "num_layers": 6}
    model = moved(make_model(contextualizer=section, **BFLOAT16), pretended).train()
    optimizer = make_optimizer(model, optimizer)
    # As where a step without effect is to be taken back.
    optimizer.found_inf = torch.zeros((), device=pretended)
    seen = []
    for batch in make_loader(corpus, vocabulary, pretended):
        optimizer.zero_grad()
        waits.clear()
        launches.clear()
        counts = [0]
        loss = model(**batch)["loss"]
        for step in (lambda: None, loss.backward, optimizer.step):
            step()
            counts.append(launches.total())
        assert not waits
        seen.append(np.diff(counts))
    # The first step makes Adam's moments. With padding taken out of the batch or left in it: the
    # former takes some 50 more.
    assert len(seen) > 2 and (np.array(seen[1:]) <= (335, 400, most)).all()


@pytest.mark.parametrize("changes, tolerance", [({}, 1e-5), (BFLOAT16, 5e-2)])
def test_embedding_waits_twice(make_model, vocabulary, corpus, pretended, changes, tolerance):
    """Whether the weights are what they were, and which words are new."""
    model = make_model(**changes).eval().requires_grad_(False)
    batches = list(make_loader(corpus, vocabulary))
    expected = [model(**batch)["lm_embeddings"] for batch in batches]
    moved(model, pretended)
    # The loader's order is the same every time.
    for batch, vectors in zip(make_loader(corpus, vocabulary, pretended), expected, strict=True):
        waits.clear()
        source = {n: entry for n, entry in batch["source"].items() if n != "tokens"}
        found = model(source)["lm_embeddings"]
        assert waits.total() <= 2
        assert torch.allclose(numbers(found), vectors, atol=tolerance)
    assert len(expected) > 2


def test_a_batch_is_counted_in_few_waits(make_model, vocabulary, pretended):
    model = moved(make_model(), pretended).eval()
    with torch.no_grad():
        source = moved(tensors(PADDED, vocabulary), pretended)["source"]
        losses = model.losses(model.encode(source), model.token_ids(source))
        waits.clear()
        Totals().add(losses, len(PADDED), 0)
    assert waits.total() <= 2
