"""
What a model computes on a device is what it computes on the CPU. Needs a GPU.
"""

import copy
import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from allennlp.commands.evaluate import evaluate_from_archive
from allennlp.commands.train import train_model
from allennlp.common import Params
from allennlp.models import load_archive
from allennlp.modules.token_embedders import TokenEmbedder
from allennlp.predictors import Predictor
from allennlp.training import gradient_descent_trainer

from tests.small_lm import experiment_config, random_sentences, tensors, with_squared_relu
from transformer_elmo import DenseSparseAdam, TransformerElmo
from transformer_elmo.plugin.text_fields import FACTS
from transformer_elmo.plugin.training.bad_steps import BadSteps

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

DEVICE = "cuda"
PADDED = ["the cat sat on the mat", "it was", "dog", "a 東京 flew . tree and then"]


@pytest.fixture(autouse=True)
def without_tf32():
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def moved(batch, device):
    if isinstance(batch, torch.Tensor):
        return batch.to(device)
    return {key: moved(value, device) for key, value in batch.items()}


def two_models(make_model, **changes):
    here = make_model(**changes)
    return here, copy.deepcopy(here).to(DEVICE)


def without_dropout():
    from tests.small_lm import model_config

    contextualizer = model_config()["contextualizer"]
    contextualizer.update(dropout=0.0, input_dropout=0.0)
    return {"contextualizer": contextualizer}


def same_gradients(here, there, relative=1e-4):
    for (name, one), (_, other) in zip(here.named_parameters(), there.named_parameters()):
        assert (one.grad is None) == (other.grad is None), name
        if one.grad is None:
            continue
        one, other = one.grad.to_dense(), other.grad.to_dense().cpu()
        scale = max(1e-3, float(one.abs().max()))
        assert float((one - other).abs().max()) <= relative * scale, name


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"sparse_embeddings": False},
        {"num_samples": None, "sparse_embeddings": False},
        {"contextualizer": with_squared_relu()["contextualizer"]},
    ],
)
def test_exact_loss_and_gradients(make_model, vocabulary, changes):
    here, there = two_models(make_model, **changes)
    batch = tensors(PADDED, vocabulary)
    expected, output = here.eval()(**batch), there.eval()(**moved(batch, DEVICE))
    for name in ("loss", "forward_loss", "backward_loss"):
        assert float(expected[name]) == pytest.approx(float(output[name]), rel=1e-5)
    assert torch.allclose(expected["lm_embeddings"], output["lm_embeddings"].cpu(), atol=1e-4)
    expected["loss"].backward()
    output["loss"].backward()
    same_gradients(here, there)


@pytest.mark.parametrize("sparse", [True, False])
def test_sampled_loss_and_gradients(make_model, vocabulary, sparse):
    here, there = two_models(make_model, **without_dropout(), sparse_embeddings=sparse)
    expected, output = (with_the_same_draw(model, vocabulary) for model in (here, there))
    assert float(expected) == pytest.approx(float(output), rel=1e-5)
    same_gradients(here, there)


def with_the_same_draw(model, vocabulary):
    """The loss of a training step, without its optimizer."""
    device = next(model.parameters()).device
    drawn = torch.tensor([1, 2, 5, 6, 9, 12, 20, 21]), torch.tensor(8.0).log()
    model._softmax_loss.draw = lambda device: tuple(part.to(device) for part in drawn)
    loss = model.train()(**moved(tensors(PADDED, vocabulary), device))["loss"]
    loss.backward()
    return loss


def test_bfloat16_is_as_good_as_the_cpus(make_model, vocabulary):
    """Both are compared with float32."""
    exact = make_model(**without_dropout())
    here, there = two_models(make_model, **without_dropout(), precision="bfloat16")
    losses = [float(with_the_same_draw(model, vocabulary)) for model in (exact, here, there)]
    assert losses[2] == pytest.approx(losses[0], rel=0.01)
    errors = [gradient_error(model, exact) for model in (here, there)]
    assert errors[1] < 1.5 * errors[0]


def gradient_error(model, exact):
    """The length of the difference of the gradients, by the length of the exact ones."""
    pairs = [
        (one.grad.to_dense().cpu(), other.grad.to_dense())
        for one, other in zip(model.parameters(), exact.parameters())
        if one.grad is not None
    ]
    difference = sum(float((one - other).square().sum()) for one, other in pairs)
    return (difference / sum(float(other.square().sum()) for _, other in pairs)) ** 0.5


@pytest.mark.parametrize("sparse", [True, False])
def test_training_steps(make_model, vocabulary, sparse):
    """With the same draws and no dropout, each of 30 steps has the CPU's loss."""
    models = two_models(make_model, **without_dropout(), sparse_embeddings=sparse)
    here, there = (losses_of_steps(model, vocabulary) for model in models)
    assert np.mean(here[-5:]) < 0.8 * here[0]
    assert there == pytest.approx(here, rel=1e-3)


def losses_of_steps(model, vocabulary, steps=30):
    optimizer = DenseSparseAdam(list(model.named_parameters()), lr=1e-3)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        losses.append(float(with_the_same_draw(model, vocabulary).detach()))
        optimizer.step()
    return losses


def test_optimizer_is_the_cpus(make_model, vocabulary):
    here, there = two_models(make_model)
    batch = tensors(PADDED, vocabulary)
    here(**batch)["loss"].backward()
    for one, other in zip(here.parameters(), there.parameters()):
        other.grad = None if one.grad is None else one.grad.clone().to(DEVICE)
    for model in (here, there):
        optimizer = DenseSparseAdam(list(model.named_parameters()), lr=1e-2)
        optimizer.step()
        optimizer.step()
    for (name, one), other in zip(here.named_parameters(), there.parameters()):
        assert torch.allclose(one, other.cpu(), atol=1e-6), name


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_bad_step_has_no_effect(make_model, vocabulary, what):
    model = make_model().to(DEVICE).train()
    optimizer = DenseSparseAdam(list(model.named_parameters()), lr=1e-2)
    bad_steps = BadSteps()
    trainer: Any = SimpleNamespace(
        **dict.fromkeys(("model", "_pytorch_model"), model),
        **dict.fromkeys(("_scaler", "_ddp_wrapped_model", "_serialization_dir")),
        **dict.fromkeys(("_epochs_completed", "_batches_in_epoch_completed"), 1),
        optimizer=optimizer,
    )

    def step(spoilt):
        optimizer.zero_grad()
        batch = moved(tensors(PADDED, vocabulary), DEVICE)
        output = model(**batch)
        if spoilt and what == "loss":
            output["loss"] = output["loss"] * float("inf")
        bad_steps.guard(batch, output)
        output["loss"].backward()
        if spoilt and what == "gradient":
            next(model.parameters()).grad.mul_(float("nan"))
        bad_steps.check(trainer)
        optimizer.step()
        assert not bad_steps.settle(trainer)
        return {name: weight.cpu().clone() for name, weight in model.state_dict().items()}

    def counts():
        return [state["step"] for state in optimizer.state.values()]

    before, counted = step(False), counts()
    after = step(True)
    assert bad_steps.in_a_row == 1 and counts() == counted
    for name, weight in before.items():
        assert torch.equal(weight, after[name]), name
    assert any(not torch.equal(weight, before[name]) for name, weight in step(False).items())
    assert bad_steps.in_a_row == 0


def test_clipping_with_sparse_rows(make_model, vocabulary):
    here, there = two_models(make_model)
    here(**tensors(PADDED, vocabulary))["loss"].backward()
    for one, other in zip(here.parameters(), there.parameters()):
        other.grad = None if one.grad is None else one.grad.clone().to(DEVICE)
    norms = [
        gradient_descent_trainer.clip_grad_norm_(list(model.parameters()), 0.1)
        for model in (here, there)
    ]
    assert float(norms[0]) == pytest.approx(float(norms[1]), rel=1e-4)
    same_gradients(here, there)


@pytest.fixture(scope="module")
def elmos(lm_archive):
    return [TransformerElmo.from_archive(lm_archive, device=device) for device in ("cpu", DEVICE)]


@pytest.mark.parametrize("layers", ["mix", "all", "top", 0, 1])
def test_vectors(elmos, layers, sentences):
    here, there = (elmo.embed([*sentences, ""], layers) for elmo in elmos)
    for one, other in zip(here, there):
        assert np.allclose(one, other, atol=1e-4)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_compiled_vectors(elmos, lm_archive, sentences, precision):
    compiled = TransformerElmo.open(lm_archive, device=DEVICE, precision=precision, compile=True)
    for one, other in zip(elmos[0].embed(sentences), compiled.embed(sentences)):
        assert np.allclose(one, other, atol=1e-4 if precision == "float32" else 5e-2)


def test_long_text(elmos):
    text = " ".join(random_sentences(800, seed=5))
    here, there = (elmo.embed([text], "mix")[0] for elmo in elmos)
    assert len(here) > 4000
    assert np.allclose(here, there, atol=2e-4)


def test_scores(elmos, sentences):
    here, there = (elmo.score(sentences, top_k=3) for elmo in elmos)
    for one, other in zip(here, there):
        for name in ("forward", "backward", "combined"):
            a, b = getattr(one, name), getattr(other, name)
            assert [p is None for p in a.log_probs] == [p is None for p in b.log_probs]
            assert np.allclose(
                [p for p in a.log_probs if p is not None],
                [p for p in b.log_probs if p is not None],
                atol=1e-4,
            )
    fills = [elmo.fill("the cat ___ on the mat") for elmo in elmos]
    assert [c.probability for c in fills[0]] == pytest.approx(
        [c.probability for c in fills[1]], rel=1e-3
    )
    assert elmos[0].perplexity(sentences) == pytest.approx(elmos[1].perplexity(sentences), rel=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"layers": "top"},
        {"layers": 0},
        {"requires_grad": True},
        {"remove_bos_eos": False},
        {"bos_eos_tokens": None, "remove_bos_eos": False},
        {"max_tokens_per_forward": 8},
        {"precision": "bfloat16"},
    ],
)
def test_token_embedder(lm_archive, vocabulary, options):
    params = {"type": "bidirectional_lm_token_embedder", "archive_file": str(lm_archive), **options}
    batch = tensors(PADDED, vocabulary)["source"]["token_characters"]["elmo_tokens"]
    results = []
    for device in ("cpu", DEVICE):
        embedder = TokenEmbedder.from_params(Params(copy.deepcopy(params)), vocab=vocabulary)
        embedder.to(device).eval()
        vectors = embedder(batch.to(device))
        if vectors.requires_grad:
            vectors.square().mean().backward()
        results.append((vectors.detach().cpu(), embedder))
    tolerance = 1e-4 if "precision" not in options else 5e-2
    assert torch.allclose(results[0][0], results[1][0], atol=tolerance)
    if "precision" not in options:
        same_gradients(results[0][1], results[1][1], 1e-3)


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n".join(random_sentences(300, seed=9)), encoding="utf-8")
    return str(path)


def test_evaluate_and_predict(lm_archive, corpus):
    results = [
        evaluate_from_archive(str(lm_archive), corpus, cuda_device=device) for device in (-1, 0)
    ]
    assert results[0]["perplexity"] == pytest.approx(results[1]["perplexity"], rel=1e-5)
    assert results[0]["num_tokens"] == results[1]["num_tokens"]
    predictor = Predictor.from_archive(load_archive(str(lm_archive), cuda_device=0))
    there = predictor.predict_batch_json([{"sentence": "the cat sat"}, {"tokens": ["a", "dog"]}])
    assert [result["num_tokens"] for result in there] == [4, 3]


def trained(folder, corpus, trainer, **changes):
    config = experiment_config(
        train_data_path=corpus,
        validation_data_path=corpus,
        data_loader={"type": "language_modeling", "max_tokens": 200, "distinct_words": True},
        trainer={
            "num_epochs": 2,
            "optimizer": {"type": "dense_sparse_adam", "lr": 0.005},
            "cuda_device": 0,
            "validation_metric": "-perplexity",
            **trainer,
        },
        **changes,
    )
    return train_model(
        Params(config), str(folder), **{"recover": (folder / "config.json").exists()}
    )


def test_train_and_recover(tmp_path, corpus):
    """Twice the same run, one of them stopped after its first epoch."""
    trainer = {
        "checkpointer": {
            "type": "crash_safe",
            "save_every_num_batches": 7,
            "keep_most_recent_by_count": None,
        },
        "callbacks": [{"type": "resume_data"}],
    }
    whole = trained(tmp_path / "whole", corpus, trainer)
    again = trained(tmp_path / "again", corpus, trainer)
    metrics = [json.loads((tmp_path / n / "metrics.json").read_text()) for n in ("whole", "again")]
    assert metrics[0]["best_validation_perplexity"] == pytest.approx(
        metrics[1]["best_validation_perplexity"], rel=1e-3
    )
    # As a kill in the second epoch leaves it.
    for path in (tmp_path / "again").iterdir():
        if path.name in ("metrics.json", "model.tar.gz", "best.th", "metrics_epoch_1.json"):
            path.unlink()
    states = sorted((tmp_path / "again").glob("*_state_e1_b*.th"))
    assert states
    for path in (tmp_path / "again").glob("*_state_e2_*.th"):
        path.unlink()
    for path in states[len(states) // 2 :]:
        path.unlink()
    recovered = trained(tmp_path / "again", corpus, trainer)
    same = [
        float((a - b.to(a.device)).abs().max())
        for a, b in zip(whole.state_dict().values(), recovered.state_dict().values())
    ]
    assert again is not None and max(same) < 5e-2


@pytest.mark.parametrize(
    "trainer",
    [
        {"use_amp": True},
        {"grad_norm": 1.0},
        {"moving_average": {"type": "exponential", "decay": 0.9}},
    ],
)
def test_trainer_options(tmp_path, corpus, trainer):
    trained(tmp_path / "out", corpus, trainer)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert np.isfinite(metrics["best_validation_perplexity"])


def test_precisions_train(tmp_path, corpus):
    from tests.small_lm import model_config

    perplexities = []
    for precision, device in (("float32", -1), ("float32", 0), ("bfloat16", 0)):
        folder = tmp_path / f"{precision}{device}"
        trained(folder, corpus, {"cuda_device": device}, model=model_config(precision=precision))
        metrics = json.loads((folder / "metrics.json").read_text())
        perplexities.append(metrics["best_validation_perplexity"])
    assert perplexities[1:] == pytest.approx([perplexities[0]] * 2, rel=0.1)


def test_loader_gives_what_the_cpu_gets(lm_archive, corpus):
    from transformer_elmo import LanguageModelingDataLoader

    archive = load_archive(str(lm_archive))
    loaders = []
    for device in ("cpu", "cuda:0"):
        loader = LanguageModelingDataLoader(
            archive.dataset_reader, corpus, max_tokens=150, distinct_words=True, quiet=True
        )
        loader.index_with(archive.model.vocab)
        loader.set_target_device(torch.device(device))
        loaders.append(loader)
    for here, there in zip(*loaders, strict=True):
        for name, entry in here["source"].items():
            for key, tensor in entry.items():
                other = there["source"][name][key]
                if key == FACTS:
                    assert np.array_equal(tensor.lengths, other.lengths)
                    assert tensor.longest_word == other.longest_word
                    continue
                assert other.device.type == DEVICE
                assert torch.equal(tensor, other.cpu())
