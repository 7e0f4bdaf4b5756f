# Sourced by fetch_data.sh and fetch_vocab.sh, which set `program`: saying, failing, space and downloads.
# shellcheck shell=bash
: "${program:?}"

say() { printf '%s: %s\n' "$program" "$*" >&2; }
fail() { printf '%s: %s\n' "$program" "$*" >&2; exit 1; }

# need TOOL...: fails where one isn't there.
need() {
    local tool
    for tool in "$@"; do
        command -v "$tool" >/dev/null 2>&1 || fail "needs '$tool', which isn't on this machine's PATH; install it"
    done
}

# Quotes for the shell, so that a path with spaces, quotes or a * can be pasted.
quoted() { printf "'%s'" "$(printf '%s' "$1" | sed "s/'/'\\\\''/g")"; }

# folder_of DIR: makes DIR and prints its absolute path.
folder_of() {
    mkdir -p -- "$1" 2>/dev/null || fail "can't make the folder '$1': name one that may be written to"
    [ -w "$1" ] || fail "may not write to the folder '$1': name another"
    (cd -- "$1" && pwd)
}

# check_space DIR KILOBYTES WHAT
check_space() {
    local free
    free=$(df -Pk "$1" | awk 'NR == 2 { print $4 }')
    if [ "$free" -lt "$2" ]; then
        fail "$3 needs $((($2 + 1023) / 1024)) MB, but only $((free / 1024)) MB are free in $1: make room, or name" \
            "a folder on another disk"
    fi
}

kilobytes_of() { if [ -f "$1" ]; then echo $(($(wc -c <"$1") / 1024)); else echo 0; fi; }

# only_run DIR FILE: fails where another run holds the lock of FILE (DIR itself leaves nothing behind).
only_run() {
    if command -v flock >/dev/null 2>&1; then
        if [ -d "$2" ]; then exec 9<"$2"; else exec 9>"$2"; fi
        flock -n 9 || fail "another run of this is at work on $1"
    fi
}

# One try at URL into PART, from where PART ends. Sets `outcome` (complete, retry, again, never, full) and `reason`.
attempt() {
    local url=$1 part=$2 said="" tool=curl status=0 code
    # A proxy or a server that falls silent is given up after a minute.
    local command=(curl --fail --location --connect-timeout 30 --speed-limit 1 --speed-time 60
        --continue-at - --output "$part" --write-out '\n%{http_code}' "$url")
    if ! command -v curl >/dev/null 2>&1; then
        tool=wget
        said=$(wget --no-verbose --server-response --tries=1 --timeout=60 --continue --output-document="$part" "$url" \
            2>&1 </dev/null) || status=$?
    elif [ -t 2 ]; then
        said=$("${command[@]}" --progress-bar </dev/null) || status=$?
    else
        said=$("${command[@]}" --silent --show-error 2>&1 </dev/null) || status=$?
    fi
    # curl writes the server's code as a line of its own, wget the headers.
    code=$(printf '%s\n' "$said" | sed -n 's/^ *HTTP\/[0-9.]* \([0-9]*\).*/\1/p; /^[0-9][0-9][0-9]$/p' | tail -n 1)
    reason=$(printf '%s\n' "$said" | grep -v -e '^ ' -e '^[0-9]*$' | tail -n 1) || true
    reason=${reason:-the connection ended before the file did}
    case $tool-$status in curl-22|wget-8) status=answer reason="the server answered $code" ;; esac
    case $tool-$status-$code-$reason in
        *-0-*) outcome=complete ;;
        curl-23-*|wget-3-*|wget-*"Cannot write"*) outcome=full ;;
        curl-33-*|wget-answer-200-*) outcome=again reason="the server can't resume" ;;
        *-answer-416-*) outcome=complete ;; # Nothing after what is here: the checks that follow say whether it is right.
        *-answer-408-*|*-answer-425-*|*-answer-429-*|*-answer-5??-*) outcome=retry ;;
        *-answer-*|curl-[13]-*|wget-[12]-*) outcome=never ;;
        *) outcome=retry ;;
    esac
}

# download URL FILE VARIABLE: FILE appears when it is complete; until then it grows as FILE.part, which a later run
# goes on with. VARIABLE names what chooses another mirror.
download() {
    local url=$1 file=$2 part=$2.part tries=1 wait=${FETCH_WAIT:-2} attempts=${FETCH_ATTEMPTS:-5}
    local outcome="" reason=""
    command -v curl >/dev/null 2>&1 || command -v wget >/dev/null 2>&1 ||
        fail "needs 'curl' or 'wget', and neither is on this machine's PATH; install one"
    if [ "$(cat "$part.url" 2>/dev/null)" != "$url" ]; then
        rm -f "$part" # It was begun from another address.
        # In braces, so that the shell's own complaint isn't shown beside ours.
        if ! { printf '%s\n' "$url" >"$part.url"; } 2>/dev/null; then
            rm -f "$part.url" 2>/dev/null || true
            fail "can't write to $(dirname "$part"): is the disk full?"
        fi
    fi
    if [ -s "$part" ]; then
        say "going on with $url after $(kilobytes_of "$part") kB"
    else
        say "downloading $url"
    fi
    while :; do
        attempt "$url" "$part"
        case $outcome in
            complete) break ;;
            full)
                fail "$part can't be written to: is the disk full? What has come is kept, make room and run this again"
                ;;
            never)
                [ -s "$part" ] || rm -f "$part" "$part.url"
                fail "$url can't be had: $reason. Another mirror is chosen by $3"
                ;;
            again) rm -f "$part" ;;
        esac
        if [ "$tries" -ge "$attempts" ]; then
            [ -s "$part" ] || rm -f "$part" "$part.url"
            fail "$url couldn't be had in $attempts tries: $reason. Is this machine online? Run this again to go on" \
                "with what has come; another mirror is chosen by $3"
        fi
        say "try $tries of $attempts: $reason; again in $wait s"
        sleep "$wait"
        tries=$((tries + 1))
        wait=$((wait * 2))
    done
    rm -f "$part.url"
    [ -f "$part" ] || : >"$part" # An empty file makes curl write none.
    mv "$part" "$file"
}
