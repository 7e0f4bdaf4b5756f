#!/usr/bin/env bash
# Set-up, then the main job on real text: train a small biLM, evaluate it, embed a sentence with it, and train
# a tagger on top. Under five minutes on two cores once set up.
#
#   ./scripts/quickstart.sh                    prose that ships with Python
#   ./scripts/quickstart.sh --corpus PATH      your own: a file, folder or glob with one sentence a line, of which
#                                              the first 65,000 words are used
#
# Everything is written to quickstart/ (or $QUICKSTART_DIR), which git ignores. A second run replaces it.
set -euo pipefail

usage() { sed -n '2,/^set /p' "$0" | sed '$d; s/^# \{0,1\}//'; }

corpus=()
while [ $# -gt 0 ]; do
  case "$1" in
    --corpus)
      [ $# -ge 2 ] || { echo "quickstart: --corpus needs a path" >&2; exit 2; }
      case "$2" in /* | *://*) corpus=(--corpus "$2") ;; *) corpus=(--corpus "$PWD/$2") ;; esac
      shift 2 ;;
    -h | --help) usage; exit 0 ;;
    *) echo "quickstart: unknown argument $1" >&2; usage >&2; exit 2 ;;
  esac
done

cd "$(dirname "$0")/.."
./scripts/setup.sh
# shellcheck disable=SC1091
. .venv/bin/activate

run=${QUICKSTART_DIR:-quickstart}
# What is there already is replaced only if it is a quickstart's.
if [ -n "${QUICKSTART_DIR:-}" ] && [ -n "$(ls -A "$run" 2>/dev/null)" ] && [ ! -e "$run/data/truecase" ]; then
  echo "quickstart: QUICKSTART_DIR names $run, which is in use for something else; name a new or empty folder" >&2
  exit 1
fi
say() { printf '\n== %s\n' "$*"; }
# AllenNLP's log goes to a file; on failure its end is shown.
logged() {
  local log=$1; shift
  "$@" >"$log" 2>&1 || { tail -n 30 "$log" >&2; echo "quickstart: failed; the whole log is $log" >&2; exit 1; }
}

mkdir -p "$run"
rm -rf "$run/lm" "$run/tagger" "$run/evaluation.json"

say "Text"
python scripts/quickstart_corpus.py "$run/data" ${corpus[@]+"${corpus[@]}"}

say "Training a bidirectional language model (log: $run/train.log)"
export BIDIRECTIONAL_LM_TRAIN_PATH="$run/data/train"
export BIDIRECTIONAL_LM_VOCAB_PATH="$run/data/vocabulary"
export BIDIRECTIONAL_LM_HELDOUT_PATH="$run/data/heldout.txt"
# Of fewer words than the config samples, all are scored.
override='{}'
if [ "$(wc -l <"$BIDIRECTIONAL_LM_VOCAB_PATH/tokens.txt")" -le 512 ]; then override='{"model.num_samples": null}'; fi
logged "$run/train.log" allennlp train training_config/quickstart.jsonnet -s "$run/lm" --file-friendly-logging \
  -o "$override"

say "Evaluating it (log: $run/evaluate.log)"
logged "$run/evaluate.log" allennlp evaluate --cuda-device -1 --output-file "$run/evaluation.json" \
  -o '{"iterator": {"base_iterator": {"maximum_samples_per_batch": ["num_tokens", 500] }}}' \
  "$run/lm/model.tar.gz" "$BIDIRECTIONAL_LM_HELDOUT_PATH"

say "Training a truecasing tagger on top (log: $run/tagger.log)"
export BIDIRECTIONAL_LM_ARCHIVE_PATH="$run/lm/model.tar.gz"
export TAGGER_TRAIN_PATH="$run/data/truecase/train.txt"
export TAGGER_VALIDATION_PATH="$run/data/truecase/heldout.txt"
logged "$run/tagger.log" allennlp train training_config/pos_tagger.jsonnet -s "$run/tagger" --file-friendly-logging \
  -o '{"model.encoder.input_size": 256, "model.encoder.hidden_size": 64, "trainer.num_epochs": 3}'

say "What was learned"
python scripts/quickstart_report.py "$run"
