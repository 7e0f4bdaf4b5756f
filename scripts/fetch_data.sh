#!/usr/bin/env bash
# Fetches the One Billion Word benchmark, checks it, and prints the variables that the training config reads.
usage() {
    cat <<'USAGE'
Usage: ./scripts/fetch_data.sh DIR

Downloads the One Billion Word benchmark (1.8 GB) and unpacks it (about 4.2 GB) to
DIR/1-billion-word-language-modeling-benchmark-r13output, which appears only when it is complete. An interrupted
download is gone on with by running this again; where all is there, nothing is done.

Standard output gets only the lines that set the variables, so all of this works:
  ./scripts/fetch_data.sh DIR              and paste the lines that it prints
  source <(./scripts/fetch_data.sh DIR)    in bash and zsh

Environment variables:
  BILLION_WORD_MIRROR  the address of a folder that holds the archive (default http://www.statmt.org/lm-benchmark)
  BILLION_WORD_SHA256  the checksum expected of the archive; `none` to check only that it is whole
  FETCH_ATTEMPTS       how often a download is tried (default 5)
  FETCH_WAIT           seconds before the second try, doubled after each (default 2)
USAGE
}
set -euo pipefail

program=fetch_data
# shellcheck source=scripts/download.sh
. "$(dirname "${BASH_SOURCE[0]}")/download.sh"

NAME=1-billion-word-language-modeling-benchmark-r13output
TRAINING=training-monolingual.tokenized.shuffled
HELDOUT=heldout-monolingual.tokenized.shuffled
ARCHIVE_KB=1750206   # 1,792,209,805 bytes
UNPACKED_KB=4500000
mirror=${BILLION_WORD_MIRROR:-http://www.statmt.org/lm-benchmark}
expected_sum=${BILLION_WORD_SHA256:-01ba60381110baf7f189dfd2b8374de371e8c9a340835793f190bdae9e90a34e}

case ${1:-} in
    -h|--help) usage; exit 0 ;;
    ""|-*) usage >&2; fail "expected a folder, got '${1:-nothing}'" ;;
esac
[ $# -eq 1 ] || { usage >&2; fail "expected one folder, got $# arguments"; }

# Prints what the benchmark at $1 lacks, a line each: shards that are absent or empty.
lacking() {
    local number shard
    for number in $(seq -f %05g 1 99); do
        shard=$TRAINING/news.en-$number-of-00100
        [ -s "$1/$shard" ] || echo "$shard"
    done
    shard=$HELDOUT/news.en-00000-of-00100
    [ -s "$1/$shard" ] || echo "$shard"
    for number in $(seq -f %05g 0 49); do
        shard=$HELDOUT/news.en.heldout-$number-of-00050
        [ -s "$1/$shard" ] || echo "$shard"
    done
}

print_exports() {
    printf 'export BIDIRECTIONAL_LM_DATA_PATH=%s\n' "$(quoted "$1")"
    printf 'export BIDIRECTIONAL_LM_TRAIN_PATH=%s\n' "$(quoted "$1/$TRAINING/*")"
}

sum_of() {
    if command -v sha256sum >/dev/null 2>&1; then
        sha256sum "$1"
    elif command -v shasum >/dev/null 2>&1; then
        shasum -a 256 "$1"
    else
        fail "needs 'sha256sum' or 'shasum' to check the archive (BILLION_WORD_SHA256=none goes without)"
    fi | cut -d ' ' -f 1
}

need tar gzip df awk sed seq
folder=$(folder_of "$1")
final=$folder/$NAME
archive=$folder/$NAME.tar.gz
unpacking=$folder/.$NAME.unpacking

only_run "$folder" "$folder/.fetch_data.lock"

if [ -e "$final" ]; then
    lacks=$(lacking "$final")
    [ -z "$lacks" ] || fail "$final is there but lacks $(printf '%s\n' "$lacks" | wc -l | tr -d ' ') files" \
        "($(printf '%s\n' "$lacks" | head -n 1)): move it away and run this again"
    say "$final is there and complete"
    print_exports "$final"
    exit 0
fi

if [ ! -f "$archive" ]; then
    begun=$(kilobytes_of "$archive.part")
    still=$((begun < ARCHIVE_KB ? ARCHIVE_KB - begun : 0))
    check_space "$folder" $((still + UNPACKED_KB)) "the benchmark"
    download "$mirror/$NAME.tar.gz" "$archive" BILLION_WORD_MIRROR
else
    check_space "$folder" "$UNPACKED_KB" "unpacking the benchmark"
fi

say "checking the archive"
if ! gzip -t "$archive" 2>/dev/null; then
    begins=$(head -c 40 "$archive" | LC_ALL=C tr -c '[:print:]' '.')
    rm -f "$archive"
    fail "what $mirror sent isn't a whole gzip archive (it begins with '$begins'), and was removed: run this again," \
        "or choose another mirror by BILLION_WORD_MIRROR"
fi
if [ "$expected_sum" != none ]; then
    sum=$(sum_of "$archive")
    if [ "$sum" != "$expected_sum" ]; then
        rm -f "$archive"
        fail "what $mirror sent is another file (SHA-256 $sum, expected $expected_sum), and was removed: run this" \
            "again, or choose another mirror by BILLION_WORD_MIRROR"
    fi
fi

say "unpacking"
rm -rf "$unpacking"
trap 'rm -rf "$unpacking"' EXIT
mkdir "$unpacking"
if ! complaint=$(tar --exclude .svn -xzf "$archive" -C "$unpacking" 2>&1); then
    fail "unpacking $archive failed ($(printf '%s\n' "$complaint" | head -n 1)): is the disk full? The archive is" \
        "kept, run this again to go on"
fi
lacks=$(lacking "$unpacking/$NAME")
if [ -n "$lacks" ]; then
    rm -f "$archive"
    fail "the archive from $mirror lacks $(printf '%s\n' "$lacks" | wc -l | tr -d ' ') files" \
        "($(printf '%s\n' "$lacks" | head -n 1)), and was removed: choose another mirror by BILLION_WORD_MIRROR"
fi
mv "$unpacking/$NAME" "$final"
rm -f "$archive"
say "$final is complete: 99 training shards and the held-out ones"
print_exports "$final"
