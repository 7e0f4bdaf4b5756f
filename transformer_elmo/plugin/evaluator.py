"""What `allennlp evaluate` reports for a language model: totals over words, not batch means."""

import contextlib
import os
from os import PathLike
from pathlib import Path
from typing import IO, Any, Dict, List, Optional, Tuple, Union

import torch
from allennlp.common.checks import check_for_gpu
from allennlp.common.tqdm import Tqdm
from allennlp.common.util import dump_metrics, int_to_device
from allennlp.data import DataLoader
from allennlp.evaluation import Evaluator, SimpleEvaluator
from allennlp.evaluation.serializers.serializers import Serializer, SimpleSerializer
from allennlp.models import Model
from allennlp.nn import util
from overrides import overrides

from transformer_elmo.errors import ConfigurationError
from transformer_elmo.files import check_can_write, json_text, written_whole
from transformer_elmo.inference.evaluation import Totals, WholeText, listed_rows
from transformer_elmo.inference.scores import score_encoded
from transformer_elmo.memory import BatchSplitter
from transformer_elmo.nn.language_model import predicted
from transformer_elmo.plugin.language_model import LanguageModel
from transformer_elmo.plugin.large_batches import in_parts
from transformer_elmo.plugin.sentences import DatasetSentenceReader
from transformer_elmo.plugin.vocabulary import word_list
from transformer_elmo.text.vocabulary import WordList


@Evaluator.register("language_modeling", exist_ok=True)
class LanguageModelingEvaluator(SimpleEvaluator):
    """
    AllenNLP's evaluator, with differences for language models:

    - the loss is the mean over predicted words, whatever the batches;
    - no sentence is dropped for its length;
    - the metrics say how much was evaluated: `num_sentences`; `num_tokens`, the words that each
      direction predicted (`loss * num_tokens` is the total, in nats), boundary tokens included;
      and `num_out_of_vocabulary`, how many of the forward direction's are outside the vocabulary;
    - predictions are one line a sentence, in the order of the batches: its words and their scores
      (see `SentenceScores.to_json`), not its vectors. Words are named as the vocabulary has them.
      `allennlp predict` keeps the file's order and the words as they were;
    - data without a word to predict is an error.

    Registered as an `Evaluator` with name "language_modeling", which archives of language models
    get. For any other model it does what AllenNLP's own does. A config's section `evaluation`
    has its parameters.

    - `batch_serializer`, `cuda_device`, `postprocessor_fn_name`: As in `SimpleEvaluator`; a
      `batch_serializer` of another kind than AllenNLP's simple one writes predictions its own way.
    - `words_of`: A file of words, one a line. The metrics gain `listed_perplexity`, over
      predictions of these words alone, and their number, `num_listed_predictions`. Over words that
      the vocabularies of two models share, their perplexities can be compared.
    - `bits_per_character`: The metrics gain `bits_per_character`, what the whole text costs with
      unknown words spelled out, and `num_characters`: see `transformer_elmo.inference.evaluation`.
      That compares models of any vocabularies.
    """

    def __init__(
        self,
        batch_serializer: Optional[Serializer] = None,
        cuda_device: Union[int, torch.device] = -1,
        postprocessor_fn_name: str = "make_output_human_readable",
        words_of: Optional[str] = None,
        bits_per_character: bool = False,
    ) -> None:
        # AllenNLP's default is None, whatever its annotation says.
        serializer: Any = batch_serializer
        super().__init__(serializer, cuda_device, postprocessor_fn_name)
        self.words_of = words_of
        self.bits_per_character = bits_per_character

    @overrides(check_signature=False)
    def __call__(
        self,
        model: Model,
        data_loader: DataLoader,
        batch_weight_key: Optional[str] = None,
        metrics_output_file: Optional[Union[str, "PathLike[str]"]] = None,
        predictions_output_file: Optional[Union[str, "PathLike[str]"]] = None,
    ) -> Dict[str, Any]:
        """
        Parameters are those of `SimpleEvaluator`. Returns for a language model `loss`,
        `perplexity`, `forward_perplexity` and `backward_perplexity` if it is bidirectional,
        `num_sentences`, `num_tokens`, `num_out_of_vocabulary`. Raises `ConfigurationError` if a
        language model has nothing to predict, or no softmax to predict it with.
        """
        if not isinstance(model, LanguageModel):
            # AllenNLP's defaults are None, whatever its annotations say.
            files: Any = (batch_weight_key, metrics_output_file, predictions_output_file)
            return super().__call__(model, data_loader, *files)
        check_for_gpu(self.cuda_device)
        if model.softmax is None:
            raise ConfigurationError(
                "This language model has no softmax, so it can't say how probable a word is. "
                "Evaluate the archive that was trained."
            )
        if batch_weight_key not in (None, "", "batch_weight"):
            raise ConfigurationError(
                "The batch weight key of a language model is batch_weight, its number of predicted "
                f"words: got {batch_weight_key!r}."
            )
        for output in (metrics_output_file, predictions_output_file):
            if output is not None:
                # Better now than after all the work.
                check_can_write(Path(output))
        data_loader.set_target_device(int_to_device(self.cuda_device))
        _read_everything(data_loader)
        # Under the final name there is never half a file.
        with contextlib.ExitStack() as files:
            predictions = None
            if predictions_output_file is not None:
                predictions = files.enter_context(written_whole(Path(predictions_output_file)))
            metrics = self._evaluate(model, data_loader, predictions)
        # AllenNLP's logs them only if there is a file.
        path = None if metrics_output_file is None else os.fspath(metrics_output_file)
        dump_metrics(path, metrics, log=True)
        return metrics

    @torch.no_grad()
    def _evaluate(
        self, model: LanguageModel, data_loader: DataLoader, predictions: Optional[IO[bytes]]
    ) -> Dict[str, Any]:
        model.eval()
        # What was counted before this data is not part of it.
        model.get_metrics(reset=True)
        totals, words = Totals(), word_list(model.vocab)
        if self.words_of is not None:
            totals.listed = listed_rows(WordList.read(self.words_of).words, words)
        # What is wrong with it is better known before the work than after.
        whole = _whole_text(model, data_loader) if self.bits_per_character else None

        def found(batch: Any) -> Tuple[Tuple[Any, ...], List[str]]:
            """What the totals take of a batch, and its lines of predictions."""
            ids, encoded = model.token_ids(batch["source"]), model.encode(batch["source"])
            outside = 0 if words.unknown is None else int((ids[:, 1:] == words.unknown).sum())
            rows = predicted(encoded.packing, ids, model.is_bidirectional)
            counted = (model.losses(encoded, ids), int(encoded.mask.any(-1).sum()), outside, rows)
            if predictions is None:
                return counted, []
            if type(self.batch_serializer) is SimpleSerializer:
                assert model.softmax is not None
                scores = score_encoded(encoded, model.softmax, ids, words, model.is_bidirectional)
                return counted, [json_text(sentence.to_json()) for sentence in scores]
            postprocess = getattr(model, self.postprocessor_fn_name, None)
            return counted, [self.batch_serializer(batch, model(**batch), data_loader, postprocess)]

        progress, splitter = Tqdm.tqdm(data_loader, desc="evaluating"), BatchSplitter()
        for batch in progress:
            batch = util.move_to_device(batch, self.cuda_device)
            for counted, lines in in_parts(splitter, found, batch, model, data_loader):
                totals.add(*counted)
                if predictions is not None:
                    predictions.writelines(f"{line}\n".encode() for line in lines)
            if totals.num_tokens:
                progress.set_description(f"loss: {totals.loss:.4f} ||", refresh=False)
        if not totals.num_tokens:
            raise ConfigurationError(
                f"There is no word to predict in {getattr(data_loader, 'data_path', 'the data')}: "
                f"it has {totals.num_sentences} sentences. Expected text, one sentence a line; of "
                "a sentence's tokens, boundary tokens included, all but one are predicted."
            )
        return {**totals.metrics(), **({} if whole is None else whole.metrics(totals))}


def _whole_text(model: LanguageModel, data_loader: Any) -> WholeText:
    """The words of the data, which batches have as numbers only."""
    if not hasattr(data_loader, "reader"):
        raise ConfigurationError(
            "bits_per_character needs the words of the text, which a data loader of type "
            f"{type(data_loader).__name__} doesn't give. Use the one called language_modeling."
        )
    text = WholeText(DatasetSentenceReader(data_loader.reader, model), word_list(model.vocab))
    for instance in data_loader.iter_instances():
        text.add([[str(token) for token in instance["source"]]])
    return text


def _read_everything(data_loader: Any) -> None:
    """What shortens or repeats an epoch, or drops sentences, is meant for training."""
    reader = getattr(data_loader, "reader", None)
    if getattr(reader, "max_sequence_length", None) is not None:
        # AllenNLP's loader read the data when it was made, without the long sentences.
        data_loader._instances = None
    for owner, name, value in (
        (reader, "max_sequence_length", None),
        (data_loader, "batches_per_epoch", None),
        (data_loader, "drop_last", False),
        (getattr(data_loader, "batch_sampler", None), "drop_last", False),
    ):
        if getattr(owner, name, None):
            setattr(owner, name, value)
