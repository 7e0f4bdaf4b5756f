"""
One sentence at a time, as a server sees them: how long `embed` takes for a sentence of 20 words,
ours and allennlp-models' in turns, with words met before and with words that are new.

    python scripts/benchmark/latency.py --rounds 30 --threads 1

The peer's side is its model on a tensor of the sentence's characters, and a mean of its layers:
less than its token embedder does around it. Words that it has met before take it as long as others.
"""

import statistics
import time
from functools import partial
from typing import Any, Callable, Dict, List, Sequence

import numpy as np
import torch
import workload

WORDS = 20


def cut(text: Sequence[Sequence[str]], number: int) -> List[List[str]]:
    """So many sentences of 20 words, each of words that follow one another in the text."""
    words = [word for sentence in text for word in sentence]
    step = max(WORDS, len(words) // number)
    return [words[n * step : n * step + WORDS] for n in range(number)]


def our_elmo(model: torch.nn.Module, precision: str, device: torch.device) -> Any:
    """As `TransformerElmo.open` makes it of a model folder, with another model's weights."""
    from transformer_elmo import TransformerElmo
    from transformer_elmo.experiments import model_config_of
    from transformer_elmo.model_config import core_name
    from transformer_elmo.model_folder import reader_of
    from transformer_elmo.text.vocabulary import UNKNOWN, WordList

    config = model_config_of(workload.experiment(), None).without_softmax()
    made = config.build()
    names = {core_name(name, config.words_name): name for name in model.state_dict()}
    weights = model.state_dict()
    made.load_state_dict({name: weights[names[name]].clone() for name in made.state_dict()})
    made.precision = precision
    return TransformerElmo(made.to(device), reader_of(config, WordList([UNKNOWN])))


def peer_embed(peer: Any, words: Sequence[str], device: torch.device) -> np.ndarray:
    """What `TransformerElmo.embed` gives, by the peer's model."""
    convert = workload.ELMoCharacterMapper().convert_word_to_char_ids
    characters = torch.tensor([[convert(word) for word in ["<S>", *words, "</S>"]]], device=device)
    output = peer({"token_characters": {"elmo_tokens": characters}})
    of_words = output["noncontextual_token_embeddings"]
    layers = [torch.cat([of_words, of_words], -1), *output["lm_embeddings"]]
    return torch.stack(layers).mean(0)[0, 1:-1].cpu().numpy()


def main() -> None:
    parser = workload.arguments("Latency of one sentence, ours and allennlp-models'.")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    torch.manual_seed(13)
    text = workload.sentences(options.corpus)
    vocab = workload.vocabulary(text, options.vocabulary_size)
    section = workload.model_section()
    section["contextualizer"]["return_all_layers"] = True
    model = workload.our_model(section, vocab, options.precision).eval()
    elmo = our_elmo(model, options.precision, device)
    cache = elmo.model.words.cache
    sentences = cut(text, options.rounds)

    sides: Dict[str, Callable[[List[str]], Any]] = {
        "ours, words met before": lambda words: elmo.embed([words]),
        "ours, new words": lambda words: elmo.embed([words]),
    }
    if not options.without_peer:
        peer: Any = workload.peer_model(section, vocab, model).to(device).eval()
        peer.delete_softmax()
        sides["the peer"] = lambda words: peer_embed(peer, words, device)
        with torch.no_grad():
            gap = abs(elmo.embed(sentences[:1])[0] - peer_embed(peer, sentences[0], device)).max()
        print(f"largest difference of a vector's number: {gap:.1e}")

    seconds: Dict[str, List[float]] = {name: [] for name in sides}
    of_processor: Dict[str, List[float]] = {name: [] for name in sides}
    with torch.no_grad():
        for number, words in enumerate(sentences):
            for name in list(sides) if number % 2 else list(sides)[::-1]:
                if name == "ours, new words":
                    cache.clear()
                elif name != "the peer":
                    elmo.embed([words])
                begin = time.process_time()
                seconds[name].append(workload.timed(partial(sides[name], words), device))
                of_processor[name].append(time.process_time() - begin)
    print(workload.describe(device))
    print(f"{options.precision}, {len(sentences)} sentences of {WORDS} words, in milliseconds")
    rows = [["", "median", "shortest", "processor's", "against the peer", "by the processor's"]]
    for name, own in seconds.items():
        row = [
            name,
            *(f"{1000 * s:.1f}" for s in (statistics.median(own), min(own))),
            f"{1000 * statistics.median(of_processor[name]):.1f}",
        ]
        for times in (seconds, of_processor):
            ratios = [p / o for o, p in zip(times[name], times.get("the peer", []))]
            row.append(f"{statistics.median(ratios):.2f}" if ratios else "-")
        rows.append(row)
    print(workload.table(rows))
    if options.breakdown:
        for name, side in sides.items():
            print(f"\n{name}, seconds by kind of operator:")
            with torch.no_grad():
                for kind, spent in workload.breakdown(partial(side, sentences[0]), device):
                    print(f"  {kind:26} {spent:8.4f}")


if __name__ == "__main__":
    main()
