#!/usr/bin/env bash
# Makes the vocabulary folder of the billion-word model, from the original download or by counting the training data.
usage() {
    cat <<'USAGE'
Usage: ./scripts/fetch_vocab.sh DIR [--from-data [PATH]]

Makes DIR, an AllenNLP vocabulary (tokens.txt and non_padded_namespaces.txt), which appears only when it is complete.
It must not exist yet, or be empty; where it is complete already, nothing is done.

  --from-data [PATH]   don't download: count the words of the training data, and keep those seen 3 times or more, by
                       falling frequency. PATH is the benchmark's folder, a folder of shards, a file, or a quoted
                       pattern (default: $BIDIRECTIONAL_LM_TRAIN_PATH)

Standard output gets only the line that sets the variable, so all of this works:
  ./scripts/fetch_vocab.sh DIR              and paste the line that it prints
  source <(./scripts/fetch_vocab.sh DIR)    in bash and zsh

Environment variables:
  ELMO_VOCAB_MIRROR  the address of a folder that holds vocab-2016-09-10.txt
                     (default https://allennlp.s3.amazonaws.com/models/elmo)
  ELMO_VOCAB_LINES   the number of lines expected of that file (default 793471)
  PYTHON             the Python that counts (default: the one of .venv, else python3)
  FETCH_ATTEMPTS     how often a download is tried (default 5)
  FETCH_WAIT         seconds before the second try, doubled after each (default 2)
USAGE
}
set -euo pipefail

program=fetch_vocab
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/download.sh
. "$here/download.sh"

FILE=vocab-2016-09-10.txt
NEEDED_KB=30000
mirror=${ELMO_VOCAB_MIRROR:-https://allennlp.s3.amazonaws.com/models/elmo}
expected_lines=${ELMO_VOCAB_LINES:-793471}

target=""
from_data=0
data=${BIDIRECTIONAL_LM_TRAIN_PATH:-}
while [ $# -gt 0 ]; do
    case $1 in
        -h|--help) usage; exit 0 ;;
        --from-data)
            from_data=1
            if [ $# -gt 1 ]; then data=$2; shift; fi
            ;;
        -*) usage >&2; fail "expected a folder and perhaps --from-data, got '$1'" ;;
        *)
            [ -z "$target" ] || fail "expected one folder, got '$target' and '$1' too (a pattern must be quoted)"
            target=$1
            ;;
    esac
    shift
done
[ -n "$target" ] || { usage >&2; fail "expected the folder to make, got none"; }

need df awk sed mktemp
parent=$(folder_of "$(dirname -- "$target")")
final=$parent/$(basename -- "$target")

if [ -s "$final/tokens.txt" ] && [ -f "$final/non_padded_namespaces.txt" ]; then
    say "$final is there: $(wc -l <"$final/tokens.txt" | tr -d ' ') lines in tokens.txt"
    printf 'export BIDIRECTIONAL_LM_VOCAB_PATH=%s\n' "$(quoted "$final")"
    exit 0
fi
if [ -e "$final" ] && ! { [ -d "$final" ] && [ -z "$(ls -A "$final")" ]; }; then
    fail "$final is there but isn't a complete vocabulary: move it away, or name a new folder"
fi
check_space "$parent" "$NEEDED_KB" "the vocabulary"

only_run "$parent" "$parent"

working=$(mktemp -d "$parent/.vocabulary.XXXXXX" 2>/dev/null) || fail "can't write to $parent: is the disk full?"
trap 'rm -rf "$working"' EXIT
made=$working/vocabulary

if [ "$from_data" = 1 ]; then
    [ -n "$data" ] || fail "expected the training data after --from-data, or in BIDIRECTIONAL_LM_TRAIN_PATH, got none"
    if [ -d "$data/training-monolingual.tokenized.shuffled" ]; then
        data="$data/training-monolingual.tokenized.shuffled/*"
    fi
    python=${PYTHON:-}
    if [ -z "$python" ]; then
        python=$here/../.venv/bin/python
        [ -x "$python" ] || python=python3
    fi
    # The package beside this script is found even if it isn't installed.
    root=$(dirname "$here")
    export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
    "$python" -c 'import importlib.util as u, sys; sys.exit(u.find_spec("transformer_elmo") is None)' \
        >/dev/null 2>&1 </dev/null ||
        fail "counting needs transformer_elmo, which '$python' can't import: run ./scripts/setup.sh first, or name" \
            "another Python by PYTHON"
    say "counting the words of $data"
    "$python" -W ignore -m transformer_elmo vocab "$data" "$made" --min-count 3 >&2 </dev/null ||
        fail "counting the words of $data failed, see above; nothing was written"
    if [ ! -s "$made/tokens.txt" ] || [ ! -f "$made/non_padded_namespaces.txt" ]; then
        fail "counting the words of $data made no vocabulary"
    fi
else
    listed=$parent/.$FILE
    download "$mirror/$FILE" "$listed" ELMO_VOCAB_MIRROR
    # What is wrong with the file, if anything: its number of lines, its first three, a blank or a repeated one.
    wrong=$(LC_ALL=C awk -v expected="$expected_lines" '
        function stop(what) { print what; stopped = 1; exit }
        NR == 1 && $0 != "</S>" { stop("line 1 is \"" substr($0, 1, 40) "\", expected \"</S>\"") }
        NR == 2 && $0 != "<S>" { stop("line 2 is \"" substr($0, 1, 40) "\", expected \"<S>\"") }
        NR == 3 && $0 != "<UNK>" { stop("line 3 is \"" substr($0, 1, 40) "\", expected \"<UNK>\"") }
        $0 == "" { stop("line " NR " is blank") }
        $0 in seen { stop("line " NR " repeats line " seen[$0]) }
        { seen[$0] = NR }
        END { if (!stopped && NR != expected) print "it has " NR " lines, expected " expected }' "$listed")
    if [ -n "$wrong" ]; then
        rm -f "$listed"
        fail "what $mirror sent isn't the vocabulary ($wrong), and was removed: run this again, choose another" \
            "mirror by ELMO_VOCAB_MIRROR, or count the training data with --from-data"
    fi
    mkdir "$made"
    if ! { sed 's/^<UNK>$/@@UNKNOWN@@/' "$listed" >"$made/tokens.txt" &&
        printf '*labels\n*tags\n' >"$made/non_padded_namespaces.txt"; } 2>/dev/null; then
        fail "writing the vocabulary to $parent failed: is the disk full?"
    fi
    rm -f "$listed"
fi

[ ! -d "$final" ] || rmdir "$final"
mv "$made" "$final"
say "$final is complete: $(wc -l <"$final/tokens.txt" | tr -d ' ') lines in tokens.txt"
printf 'export BIDIRECTIONAL_LM_VOCAB_PATH=%s\n' "$(quoted "$final")"
