"""
What the benchmarks share: real English in batches, the billion-word model twice over the same
weights (ours and allennlp-models'), the arithmetic it takes, and the rate this machine multiplies
matrices at.
"""

import argparse
import collections
import json
import math
import pydoc_data.topics
import re
import resource
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, List, Optional, Sequence, Tuple

import _jsonnet
import torch
from allennlp.common import Params
from allennlp.data import Vocabulary
from allennlp.data.token_indexers.elmo_indexer import ELMoCharacterMapper
from allennlp.modules.text_field_embedders import TextFieldEmbedder
from torch.profiler import ProfilerActivity, profile

CONFIG = Path(__file__).parents[2] / "training_config" / "bidirectional_language_model.jsonnet"
NUM_CHARACTERS = ELMoCharacterMapper.max_word_length
# Dense bfloat16, from the vendor's data sheet.
H100_FLOPS = 989e12

Batch = Dict[str, Dict[str, torch.Tensor]]


def arguments(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--corpus", type=Path, help="text, a sentence a line (default: Python's own help)"
    )
    parser.add_argument(
        "--vocabulary-size", type=int, default=21_000, help="words; the billion-word run has 793471"
    )
    parser.add_argument("--tokens-per-batch", type=int, default=2000, help="padding included")
    parser.add_argument("--precision", choices=["float32", "bfloat16", "int8"], default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=5, help="batches that each side is timed on")
    parser.add_argument("--threads", type=int, help="CPU threads (default: PyTorch's choice)")
    parser.add_argument("--without-peer", action="store_true", help="time this project alone")
    parser.add_argument("--peak-flops", type=float, default=H100_FLOPS, help="of the GPU, for MFU")
    parser.add_argument(
        "--breakdown", action="store_true", help="profile one more batch of each side"
    )
    return parser


def sentences(corpus: Optional[Path]) -> List[List[str]]:
    """Sentences of a tokenized file, or of the prose that every Python carries."""
    if corpus is not None:
        lines = corpus.read_text(encoding="utf-8").splitlines()
        return [words for words in map(str.split, lines) if words]
    found = []
    for topic in pydoc_data.topics.topics.values():
        for paragraph in re.split(r"\n\s*\n", topic):
            for sentence in re.split(r"(?<=[.!?:])\s+", " ".join(paragraph.split())):
                words = re.findall(r"\w+(?:'\w+)?|[^\w\s]", sentence)
                # What is longer is a table or a grammar.
                if 2 < len(words) <= 100:
                    found.append(words)
    return found


def vocabulary(text: Sequence[Sequence[str]], size: int) -> Vocabulary:
    """The text's words by falling frequency, filled up with made-up ones."""
    counts = collections.Counter(word for words in text for word in words)
    words = ["</S>", "<S>"] + [word for word, _ in counts.most_common()]
    words = words[: size - 1] + [f"filler{number}" for number in range(size - 1 - len(words))]
    vocab = Vocabulary()
    # Word by word, AllenNLP takes a second for every 100,000.
    offset = vocab.get_vocab_size()
    to_index = vocab._token_to_index["tokens"]
    to_index.update((word, offset + number) for number, word in enumerate(words))
    vocab._index_to_token["tokens"].update((index, word) for word, index in to_index.items())
    return vocab


def batches(
    text: Sequence[Sequence[str]],
    vocab: Vocabulary,
    tokens_per_batch: int,
    seed: int = 13,
    most: Optional[int] = None,
) -> List[Batch]:
    """
    AllenNLP's tensors. Sentences of similar length share a batch, as both projects' loaders see to;
    the batches come in random order, the first `most` of them.
    """
    unknown = vocab.get_token_index("@@UNKNOWN@@")
    ids = vocab.get_token_to_index_vocabulary()

    groups: List[List[Sequence[str]]] = [[]]
    for words in sorted(text, key=len):
        if groups[-1] and (len(groups[-1]) + 1) * (len(words) + 2) > tokens_per_batch:
            groups.append([])
        groups[-1].append(words)
    groups = groups[:-1] or groups
    order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(seed))
    chosen = [groups[number] for number in order[:most]]

    # A row for each distinct word, and row 0 for padding.
    row = {"<S>": 1}
    for group in chosen:
        for words in group:
            for word in [*words, "</S>"]:
                row.setdefault(word, len(row) + 1)
    mapper = ELMoCharacterMapper()
    token_of_row = torch.tensor([0, *(ids.get(word, unknown) for word in row)])
    characters_of_row = torch.tensor(
        [[0] * NUM_CHARACTERS, *(mapper.convert_word_to_char_ids(word) for word in row)]
    )
    made = []
    for group in chosen:
        longest = max(map(len, group)) + 2
        rows = torch.zeros(len(group), longest, dtype=torch.long)
        for number, words in enumerate(group):
            found = [row[word] for word in ["<S>", *words, "</S>"]]
            rows[number, : len(found)] = torch.tensor(found)
        made.append(
            {
                "tokens": {"tokens": token_of_row[rows]},
                "token_characters": {"elmo_tokens": characters_of_row[rows]},
            }
        )
    return made


def with_distinct_words(batch: Batch) -> Dict[str, Dict[str, Any]]:
    """What our loader sends with `distinct_words`, from AllenNLP's tensors on the CPU."""
    from transformer_elmo.nn.batch import HostFacts, longest_word
    from transformer_elmo.nn.word_encoder import distinct_words
    from transformer_elmo.plugin.text_fields import FACTS

    mask = batch["tokens"]["tokens"] > 0
    words, index = distinct_words(batch["token_characters"]["elmo_tokens"][mask])
    characters = torch.cat([words.new_zeros(1, NUM_CHARACTERS), words])
    word_index = torch.zeros_like(batch["tokens"]["tokens"])
    word_index[mask] = index + 1
    facts = HostFacts(mask.sum(-1).numpy(), longest_word(characters.numpy()))
    return {
        "tokens": batch["tokens"],
        "token_characters": {"elmo_tokens": characters, "word_index": word_index, FACTS: facts},
    }


def on_device(batch: Batch, device: torch.device) -> Batch:
    """Its tensors; what else there is stays as it is."""
    return {
        name: {
            key: value.to(device) if isinstance(value, torch.Tensor) else value
            for key, value in entry.items()
        }
        for name, entry in batch.items()
    }


def experiment() -> Dict[str, Any]:
    """The billion-word run's config."""
    ext_vars = {"BIDIRECTIONAL_LM_TRAIN_PATH": "text", "BIDIRECTIONAL_LM_VOCAB_PATH": "vocabulary"}
    found: Dict[str, Any] = json.loads(_jsonnet.evaluate_file(str(CONFIG), ext_vars=ext_vars))
    return found


def model_section() -> Dict[str, Any]:
    """The billion-word model's parameters, nothing shrunk."""
    section: Dict[str, Any] = experiment()["model"]
    del section["type"]
    return section


def _arguments_of_model(section: Dict[str, Any], vocab: Vocabulary) -> Dict[str, Any]:
    section = json.loads(json.dumps(section))
    embedder = TextFieldEmbedder.from_params(
        Params(section.pop("text_field_embedder")), vocab=vocab
    )
    return {"vocab": vocab, "text_field_embedder": embedder, **section}


def our_model(section: Dict[str, Any], vocab: Vocabulary, precision: str) -> torch.nn.Module:
    from transformer_elmo import BidirectionalLanguageModel, BidirectionalLanguageModelTransformer

    kwargs = _arguments_of_model(section, vocab)
    contextualizer = {k: v for k, v in kwargs.pop("contextualizer").items() if k != "type"}
    return BidirectionalLanguageModel(
        contextualizer=BidirectionalLanguageModelTransformer(**contextualizer),
        precision=precision,
        **kwargs,
    )


def peer_model(
    section: Dict[str, Any], vocab: Vocabulary, like: torch.nn.Module
) -> torch.nn.Module:
    """allennlp-models' classes, whoever has their names in the registry, with `like`'s weights."""
    from allennlp_models.lm import BidirectionalLanguageModel
    from allennlp_models.lm.modules.seq2seq_encoders.bidirectional_lm_transformer import (
        BidirectionalLanguageModelTransformer,
    )

    kwargs = _arguments_of_model(section, vocab)
    contextualizer = {k: v for k, v in kwargs.pop("contextualizer").items() if k != "type"}
    model = BidirectionalLanguageModel(
        contextualizer=BidirectionalLanguageModelTransformer(**contextualizer), **kwargs
    )
    model.load_state_dict(like.state_dict())
    return model


@dataclass
class Arithmetic:
    """
    Floating-point operations of a forward pass, by part: what the function needs if each distinct
    word is encoded once, at its own length, and padding is left out. A backward pass takes twice as
    many.
    """

    word_encoder: float
    transformers: float
    softmax: float

    @property
    def total(self) -> float:
        return self.word_encoder + self.transformers + self.softmax


def arithmetic(section: Dict[str, Any], batch: Batch, num_softmax_words: int) -> Arithmetic:
    """
    # Parameters

    batch : `Batch`
        With or without distinct words.
    num_softmax_words : `int`
        Logits for each token and direction: the number of samples, or the whole vocabulary, or 0.
    """
    encoder = section["text_field_embedder"]["token_embedders"]["token_characters"]["encoder"]
    transformer = section["contextualizer"]
    words = batch["token_characters"]["elmo_tokens"]
    if words.dim() == 3:
        words = torch.unique(words.flatten(0, 1), dim=0)
    # One row is padding.
    words = words[(words > 0).any(-1)]
    # The first and the last character are marks; one window beyond the word still counts.
    lengths = (words != words[:, -1:]).sum(-1)
    products = (
        sum(width * number for width, number in encoder["filters"]) * encoder["embedding_dim"]
    )
    num_filters = sum(number for _, number in encoder["filters"])
    dense = encoder["num_highway"] * 2 * num_filters**2 + num_filters * encoder["projection_dim"]
    word_encoder = 2.0 * (products * float((lengths + 1).sum()) + dense * words.size(0))

    mask = batch["tokens"]["tokens"] > 0
    num_tokens, sentence_lengths = float(mask.sum()), mask.sum(-1).double()
    dim, hidden = transformer["input_dim"], transformer["hidden_dim"]
    pairs = float((sentence_lengths * (sentence_lengths + 1) / 2).sum())
    layer = 2 * (4 * dim * dim + 2 * dim * hidden) * num_tokens + 4 * dim * pairs
    predicted = float((sentence_lengths - 1).clamp(min=0).sum())
    return Arithmetic(
        word_encoder=word_encoder,
        transformers=2 * transformer["num_layers"] * layer,
        softmax=2 * 2.0 * predicted * dim * num_softmax_words,
    )


def num_tokens(batch: Batch) -> int:
    return int((batch["tokens"]["tokens"] > 0).sum())


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(function: Callable[[], Any], device: torch.device) -> float:
    synchronize(device)
    start = time.perf_counter()
    function()
    synchronize(device)
    return time.perf_counter() - start


def gemm_rate(device: torch.device, dtype: torch.dtype, num_rows: int = 2000) -> float:
    """FLOP/s over a feed-forward network's products, forward and backward; best of several."""
    tokens = torch.randn(num_rows, 512, device=device, dtype=dtype)
    weight = torch.randn(2048, 512, device=device, dtype=dtype)
    hidden = tokens @ weight.t()

    def products() -> None:
        torch.mm(tokens, weight.t())
        torch.mm(hidden, weight)
        torch.mm(hidden.t(), tokens)

    seconds = [timed(products, device) for _ in range(8)]
    return 3 * 2 * num_rows * 512 * 2048 / min(seconds)


def _linux_memory(name: str) -> float:
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found.group(1)) * 1024 / 1e9 if found else math.nan


def reset_peak_memory(device: torch.device) -> None:
    """From here on, `peak_memory` counts anew. On a CPU, only Linux can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> float:
    """GB: of the GPU, or of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    if sys.platform == "linux":
        return _linux_memory("VmHWM")
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def current_memory(device: torch.device) -> float:
    """GB in use now; not known on a CPU without Linux."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / 1e9
    return _linux_memory("VmRSS") if sys.platform == "linux" else math.nan


OPERATORS = [
    (
        "matrix products",
        r"aten::(addmm|mm|bmm|baddbmm|linear|matmul|addmm_|_sparse_mm)$|mkldnn.*linear|gemm",
    ),
    ("convolutions", r"conv"),
    ("attention", r"attention|flash|_softmax|softmax_backward"),
    ("random numbers, dropout", r"dropout|bernoulli|random|exponential|uniform|normal_"),
    ("layer norm", r"layer_norm"),
    ("optimizer", r"adam|lerp|addcdiv|addcmul|sqrt|coalesce|sparse"),
    (
        "copies and gathers",
        r"copy|cat|index|gather|scatter|embedding|clone|contiguous|unique|sort|topk",
    ),
    ("elementwise, reductions", r".*"),
]


def breakdown(function: Callable[[], Any], device: torch.device) -> List[Tuple[str, float]]:
    """Seconds by kind of operator, each operator's own time only."""
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiler:
        timed(function, device)
    totals: Dict[str, float] = dict.fromkeys((name for name, _ in OPERATORS), 0.0)
    for event in profiler.key_averages():
        own = event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
        kind = next(
            name for name, pattern in OPERATORS if re.search(pattern, event.key, re.IGNORECASE)
        )
        totals[kind] += own / 1e6
    return sorted(totals.items(), key=lambda item: -item[1])


def median_rate(tokens: Iterable[int], seconds: Iterable[float]) -> float:
    return statistics.median(n / s for n, s in zip(tokens, seconds))


def describe(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    capability = torch.backends.cpu.get_cpu_capability()
    return f"CPU ({capability}), {torch.get_num_threads()} threads, torch {torch.__version__}"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns of equal width; the first row is the heading."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        first, *rest = (cell for cell in row)
        cells = [first.ljust(widths[0])] + [cell.rjust(w) for cell, w in zip(rest, widths[1:])]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
