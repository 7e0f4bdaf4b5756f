"""
On a device that is pretended, everything computes what it computes on the CPU, nothing mixes
devices, and the host hardly ever waits.
"""

import copy
import json
from typing import Any, Dict
from unittest import mock

import numpy as np
import pytest
import torch
from allennlp.common import Params
from allennlp.data import DatasetReader
from allennlp.models import load_archive
from allennlp.modules.token_embedders import TokenEmbedder
from allennlp.predictors import Predictor
from allennlp.training.optimizers import Optimizer

from tests.device.pretend import DEVICE, PretendTensor, launches, moved, pretend_device, waits
from tests.small_lm import model_config, random_sentences, reader_config, tensors
from transformer_elmo import (
    CrashSafeCheckpointer,
    LanguageModelingDataLoader,
    LanguageModelingEvaluator,
    LanguageModelTrainer,
    TransformerElmo,
)
from transformer_elmo.inference.evaluation import Totals
from transformer_elmo.nn.kernels import attention, character_cnn
from transformer_elmo.nn.kernels.sparse_gradients import clip_norm
from transformer_elmo.plugin.text_fields import FACTS

PADDED = ["the cat sat on the mat", "it was", "dog", "a 東京 flew . tree and then"]

SOFTMAXES: Dict[str, Dict[str, Any]] = {
    "sampled, sparse": {},
    "sampled, dense": {"sparse_embeddings": False},
    "exact": {"num_samples": None, "sparse_embeddings": False},
}


def without_dropout(num_layers=2):
    contextualizer = model_config()["contextualizer"]
    contextualizer.update(dropout=0.0, input_dropout=0.0, num_layers=num_layers)
    return {"contextualizer": contextualizer}


def with_fixed_draws(model):
    """Its samples are always the same."""
    drawn = torch.tensor([1, 2, 5, 6, 9, 12, 20, 21]), torch.tensor(8.0).log()
    model._softmax_loss.draw = lambda device: tuple(part.to(device) for part in drawn)
    return model


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n".join(random_sentences(32, seed=9)), encoding="utf-8")
    return str(path)


def make_loader(corpus, vocabulary, device=None, **options):
    reader = DatasetReader.from_params(Params(reader_config()))
    options = {"max_tokens": 100, "distinct_words": True, "quiet": True, **options}
    loader = LanguageModelingDataLoader(reader, corpus, **options)
    loader.index_with(vocabulary)
    if device is not None:
        loader.set_target_device(device)
    return loader


def numbers(tensor):
    return getattr(tensor, "held", tensor).detach().to_dense().float()


def trained(model, options, batches, steps=2):
    optimizer = Optimizer.from_params(
        Params({"model_parameters": list(model.named_parameters()), **copy.deepcopy(options)})
    )
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        loss = model.train()(**batches[step % len(batches)])["loss"]
        loss.backward()
        optimizer.step()
        losses.append(float(numbers(loss)))
    return losses


@pytest.mark.parametrize(
    "optimizer, softmax, precision",
    [
        ({"type": "dense_sparse_adam", "lr": 0.01}, "sampled, sparse", "float32"),
        ({"type": "dense_sparse_adam", "lr": 0.01}, "sampled, sparse", "bfloat16"),
        ({"type": "dense_sparse_adam", "lr": 0.01}, "exact", "float32"),
        ({"type": "muon_sparse_adam", "lr": 0.01}, "sampled, sparse", "bfloat16"),
        ({"type": "adam", "lr": 0.01}, "sampled, dense", "float32"),
        ({"type": "sgd", "lr": 0.1}, "sampled, sparse", "float32"),
        ({"type": "sgd", "lr": 0.1, "momentum": 0.9}, "exact", "bfloat16"),
    ],
)
def test_training(make_model, vocabulary, optimizer, softmax, precision):
    here = make_model(**without_dropout(), **SOFTMAXES[softmax], precision=precision)
    there = copy.deepcopy(here)
    if softmax != "exact":
        here, there = with_fixed_draws(here), with_fixed_draws(there)
    batches = [tensors(random_sentences(6, seed=seed), vocabulary) for seed in range(2)]
    expected = trained(here, optimizer, batches)
    with pretend_device():
        losses = trained(moved(there), optimizer, moved(batches))
    exact = precision == "float32"
    assert losses == pytest.approx(expected, rel=1e-5 if exact else 2e-2)
    if not exact:
        return
    for (name, one), other in zip(here.named_parameters(), there.parameters()):
        # Adam makes long steps of small gradients. That of a key's bias is nothing but rounding: it
        # adds the same to all scores of a query.
        if not name.endswith("linears.1.bias"):
            assert (numbers(one) - numbers(other)).abs().median() < 1e-6, name


@pytest.mark.parametrize("optimizer, most", [("dense_sparse_adam", 40), ("muon_sparse_adam", 130)])
def test_a_training_step_never_waits(make_model, vocabulary, corpus, optimizer, most):
    """With our loader and optimizer; and what a device is sent is what it was."""
    section = model_config()["contextualizer"]
    model = make_model(contextualizer={**section, "num_layers": 6}, precision="bfloat16")
    seen = []
    with pretend_device():
        moved(model)
        optimizer = Optimizer.from_params(
            Params({"type": optimizer, "model_parameters": list(model.named_parameters())})
        )
        # As where a step without effect is to be taken back.
        optimizer.found_inf = torch.zeros((), device=DEVICE)
        for batch in make_loader(corpus, vocabulary, DEVICE):
            counts = []
            optimizer.zero_grad()
            waits.clear()
            launches.clear()
            loss = model.train()(**batch)["loss"]
            counts.append(launches.total())
            loss.backward()
            counts.append(launches.total())
            optimizer.step()
            counts.append(launches.total())
            # At most 2 are allowed; this is how it is.
            assert not waits
            # The first step makes Adam's moments.
            forward, backward, optimizer_step = np.diff([0, *counts])
            seen.append((forward, backward, optimizer_step))
    assert len(seen) > 2
    for forward, backward, optimizer_step in seen[1:]:
        # With padding taken out of the batch or left in it: the former takes some 50 more.
        assert forward <= 335 and backward <= 400 and optimizer_step <= most


def test_clipping_waits_for_the_distinct_rows(make_model, vocabulary):
    here = with_fixed_draws(make_model(**without_dropout()))
    there = with_fixed_draws(copy.deepcopy(here))
    batch = tensors(PADDED, vocabulary)
    here.train()(**batch)["loss"].backward()
    expected = clip_norm(list(here.parameters()), 0.1)
    with pretend_device():
        moved(there).train()(**moved(batch))["loss"].backward()
        waits.clear()
        norm = clip_norm(list(there.parameters()), 0.1)
        # For the softmax's weights, and for its biases.
        assert waits.total() == 2
    assert float(numbers(norm)) == pytest.approx(float(expected), rel=1e-5)
    for one, other in zip(here.parameters(), there.parameters()):
        assert one.grad is None or torch.allclose(numbers(one.grad), numbers(other.grad), atol=1e-6)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_embedding_waits_twice(make_model, vocabulary, corpus, precision):
    """Where the weights are what they were, and which words are new."""
    model = make_model(precision=precision).eval().requires_grad_(False)
    batches = list(make_loader(corpus, vocabulary))
    expected = [model(**batch)["lm_embeddings"] for batch in batches]
    with pretend_device():
        moved(model)
        for batch, vectors in zip(make_loader(corpus, vocabulary, DEVICE), expected):
            waits.clear()
            source = {n: entry for n, entry in batch["source"].items() if n != "tokens"}
            found = model(source)["lm_embeddings"]
            assert waits.total() <= 2
            assert torch.allclose(
                numbers(found), vectors, atol=1e-5 if precision == "float32" else 5e-2
            )
    # The loader's order is the same every time.
    assert len(batches) > 2


def test_weights_changed_unseen_are_noticed(make_model, vocabulary, corpus):
    """One comparison for all of them is a comparison of each."""
    model = make_model().eval().requires_grad_(False)
    (batch, *_) = make_loader(corpus, vocabulary)
    with pretend_device():
        batch = moved(batch)
        moved(model)
        before = numbers(model(**batch)["noncontextual_token_embeddings"])
        last = [p for n, p in model.named_parameters() if "highways" in n][-1]
        last.held.data += 1.0
        after = numbers(model(**batch)["noncontextual_token_embeddings"])
    assert (before - after).abs().max() > 1e-3


def test_float16_under_autocast(make_model, vocabulary):
    """What `use_amp` is made of, but for the scaling of the loss: AllenNLP's asks CUDA for it."""
    here = with_fixed_draws(make_model(**without_dropout()))
    there = with_fixed_draws(copy.deepcopy(here))
    batch = tensors(PADDED, vocabulary)
    expected = here.train()(**batch)["loss"]
    expected.backward()
    with pretend_device():
        moved(there)
        with torch.autocast(DEVICE.type, dtype=torch.float16):
            loss = there.train()(**moved(batch))["loss"]
        loss.backward()
    assert float(numbers(loss)) == pytest.approx(float(expected), rel=1e-2)
    for (name, one), other in zip(here.named_parameters(), there.parameters()):
        if one.grad is not None:
            assert other.grad.dtype == torch.float32
            scale = max(1e-2, float(one.grad.to_dense().abs().max()))
            assert (numbers(one.grad) - numbers(other.grad)).abs().max() < 0.1 * scale, name


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"layers": "top"},
        {"layers": 0},
        {"layers": 1},
        {"requires_grad": True},
        {"remove_bos_eos": False},
        {"bos_eos_tokens": None, "remove_bos_eos": False},
        {"max_tokens_per_forward": 8},
        {"dropout": 0.3},
        {"precision": "bfloat16"},
    ],
)
def test_token_embedder(lm_archive, vocabulary, options):
    params = {"type": "bidirectional_lm_token_embedder", "archive_file": str(lm_archive), **options}
    batch = tensors(PADDED, vocabulary)["source"]["token_characters"]["elmo_tokens"]
    here = TokenEmbedder.from_params(Params(copy.deepcopy(params)), vocab=vocabulary).eval()
    there = TokenEmbedder.from_params(Params(copy.deepcopy(params)), vocab=vocabulary).eval()
    vectors = here(batch)
    with pretend_device():
        found = moved(there)(moved(batch))
        assert found.requires_grad == vectors.requires_grad
        if vectors.requires_grad:
            found.square().mean().backward()
    if vectors.requires_grad:
        vectors.square().mean().backward()
    exact = "precision" not in options
    assert torch.allclose(numbers(found), vectors, atol=1e-5 if exact else 5e-2)
    for one, other in zip(here.parameters(), there.parameters()):
        assert (one.grad is None) == (other.grad is None)
        if one.grad is not None and exact:
            assert torch.allclose(numbers(one.grad), numbers(other.grad), atol=1e-5)


@pytest.fixture
def elmos(lm_archive):
    here, there = (TransformerElmo.open(lm_archive, device="cpu") for _ in range(2))
    with pretend_device():
        moved(there.model)
        yield here, there


@pytest.mark.parametrize("layers", ["mix", "all", "top", 0, 1, -1])
def test_vectors(elmos, layers, sentences):
    here, there = elmos
    expected, found = here.embed([*sentences, ""], layers), there.embed([*sentences, ""], layers)
    for one, other in zip(expected, found, strict=True):
        assert isinstance(other, np.ndarray) and np.allclose(one, other, atol=1e-5)
    padded, mask = there.embed_padded(sentences[:5], layers)
    assert padded.device == mask.device == DEVICE


def test_long_text(elmos):
    here, there = elmos
    text = " ".join(random_sentences(30, seed=5))
    whole = there.embed([text], "mix")[0]
    here.segment_length = there.segment_length = 40
    expected, found = here.embed([text], "mix")[0], there.embed([text], "mix")[0]
    assert len(found) > 100 and np.allclose(expected, found, atol=1e-5)
    assert not np.allclose(whole, found, atol=1e-5)


def test_scores(elmos, sentences):
    expected, found = (elmo.score(sentences[:20], top_k=3) for elmo in elmos)
    for one, other in zip(expected, found, strict=True):
        for name in ("forward", "backward", "combined"):
            a, b = getattr(one, name), getattr(other, name)
            assert [p is None for p in a.log_probs] == [p is None for p in b.log_probs]
            assert [p for p in a.log_probs if p is not None] == pytest.approx(
                [p for p in b.log_probs if p is not None], abs=1e-4
            )
    fills = [elmo.fill("the cat ___ on the mat") for elmo in elmos]
    assert [c.probability for c in fills[0]] == pytest.approx(
        [c.probability for c in fills[1]], rel=1e-3
    )
    perplexities = [elmo.perplexity(sentences) for elmo in elmos]
    assert perplexities[0] == pytest.approx(perplexities[1], rel=1e-5)


def test_evaluator_and_predictor(lm_archive, vocabulary, corpus, tmp_path):
    results, predictions = [], []
    for device in (torch.device("cpu"), DEVICE):
        archive = load_archive(str(lm_archive))
        loader = make_loader(corpus, vocabulary)
        with pretend_device(), mock.patch("transformer_elmo.plugin.evaluator.check_for_gpu"):
            if device == DEVICE:
                moved(archive.model)
            evaluator = LanguageModelingEvaluator(cuda_device=device)
            path = tmp_path / f"{device}.jsonl"
            results.append(evaluator(archive.model, loader, predictions_output_file=path))
            lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
            predictor = Predictor.from_archive(archive)
            lines += predictor.predict_batch_json([{"sentence": "the cat sat"}, {"tokens": ["a"]}])
            predictions.append([line["perplexity"] for line in lines])
    assert results[0] == pytest.approx(results[1], rel=1e-5)
    assert predictions[0] == pytest.approx(predictions[1], rel=1e-5)


def test_a_batch_is_counted_in_few_waits(make_model, vocabulary):
    model = make_model().eval()
    with pretend_device(), torch.no_grad():
        moved(model)
        source = moved(tensors(PADDED, vocabulary))["source"]
        encoded = model.encode(source)
        losses = model.losses(encoded, model.token_ids(source))
        waits.clear()
        Totals().add(losses, len(PADDED), 0)
        assert waits.total() <= 2


def test_loader_sends_what_the_cpu_gets(corpus, vocabulary):
    for options in ({}, {"distinct_words": False}):
        with pretend_device():
            there = list(make_loader(corpus, vocabulary, DEVICE, **options))
            assert not waits
        for one, other in zip(make_loader(corpus, vocabulary, **options), there, strict=True):
            for name, entry in one["source"].items():
                for key, tensor in entry.items():
                    if key != FACTS:
                        assert other["source"][name][key].device == DEVICE
                        assert torch.equal(tensor, other["source"][name][key].held)


def trainer_of(model, loader, folder, device, num_epochs):
    optimizer = Optimizer.from_params(
        Params(
            {
                "type": "dense_sparse_adam",
                "model_parameters": list(model.named_parameters()),
                "lr": 0.01,
            }
        )
    )
    return LanguageModelTrainer(
        model,
        optimizer,
        loader,
        num_epochs=num_epochs,
        cuda_device=device,
        serialization_dir=str(folder),
        checkpointer=CrashSafeCheckpointer(str(folder), keep_most_recent_by_count=None),
        grad_norm=1.0,
        enable_default_callbacks=False,
    )


def test_checkpoint_and_resume(make_model, vocabulary, corpus, tmp_path):
    """AllenNLP's trainer, with clipping; stopped after one of its two epochs, and not stopped."""
    ends = []
    for name, device, epochs in (
        ("CPU", torch.device("cpu"), [2]),
        ("whole", DEVICE, [2]),
        ("stopped", DEVICE, [1, 2]),
    ):
        folder = tmp_path / name
        folder.mkdir()
        for num_epochs in epochs:
            model = with_fixed_draws(make_model(**without_dropout()))
            loader = make_loader(corpus, vocabulary, shuffle=False)
            with pretend_device(), mock.patch("allennlp.training.trainer.check_for_gpu"):
                if device == DEVICE:
                    moved(model)
                trainer = trainer_of(model, loader, folder, device, num_epochs)
                with torch.serialization.safe_globals([PretendTensor]):
                    trainer.train()
        ends.append([numbers(parameter) for parameter in model.parameters()])
    cpu, whole, stopped = ends
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(whole, stopped))
    assert all((a - b).abs().median() < 1e-3 for a, b in zip(cpu, whole))


def test_each_kernel_takes_the_way_of_a_device(make_model, vocabulary):
    with (
        pretend_device(),
        mock.patch.object(attention, "written_out_attention", side_effect=AssertionError),
        mock.patch.object(character_cnn, "_width_by_width", side_effect=AssertionError),
    ):
        model = moved(make_model(precision="bfloat16"))
        model.train()(**moved(tensors(PADDED, vocabulary)))["loss"].backward()
