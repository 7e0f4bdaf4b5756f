"""
What each process of the distributed tests runs; the tests start one to four of them. It is a module
of its own so that the processes find it by name.
"""

from typing import Any, Dict

import torch
import torch.distributed as dist
from allennlp.common import Params
from allennlp.data import Vocabulary
from allennlp.models import Model
from allennlp.nn.parallel import TorchDdpAccelerator

import transformer_elmo
from tests.small_lm import WORDS, model_config, random_sentences, tensors

STEPS = 6
SENTENCES_A_STEP = 8


def train(rank: int, world_size: int, folder: str, settings: Dict[str, Any]) -> None:
    """The same sentences a step, whoever has them; each process saves its losses and weights."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world_size
    )
    # Only the first process begins with the weights that all should have.
    torch.manual_seed(0 if rank == 0 else 99)
    vocab = Vocabulary(non_padded_namespaces=["*labels", "*tags"])
    vocab.add_tokens_to_namespace(["</S>", "<S>", *WORDS])
    optimizer_class = getattr(transformer_elmo, settings.pop("optimizer", "DenseSparseAdam"))
    config = model_config(**settings)
    config["contextualizer"].update(dropout=0.0, input_dropout=0.0)
    model = Model.from_params(Params(config), vocab=vocab).train()
    if rank == 0:
        # Only this one has a bias, too.
        torch.nn.init.normal_(model.softmax.word_weights()[1])
    accelerator = TorchDdpAccelerator(local_rank=rank, world_size=world_size, cuda_device=-1)
    model, wrapped = accelerator.wrap_model(model)
    optimizer = optimizer_class(list(model.named_parameters()), lr=1e-3)
    sentences = random_sentences(STEPS * SENTENCES_A_STEP)
    losses, rows = [], []
    for step in range(STEPS):
        # The same draw everywhere, so that the curves can be compared.
        torch.manual_seed(step)
        mine = sentences[step * SENTENCES_A_STEP : (step + 1) * SENTENCES_A_STEP][rank::world_size]
        optimizer.zero_grad()
        loss = wrapped.model(**tensors(mine, vocab))["loss"]
        loss.backward()
        leaf = next(p for name, p in model.named_parameters() if "softmax_w" in name)
        rows.append(leaf.grad._nnz() if leaf.grad.is_sparse else None)
        optimizer.step()
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        losses.append(mean.item() / world_size)
    found = {"losses": losses, "rows": rows, "weights": model.state_dict()}
    torch.save({**found, "metrics": model.get_metrics(reset=True)}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()
