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

# download URL FILE VARIABLE: FILE appears when it is complete; until then it grows as FILE.part, which a later run
# goes on with. VARIABLE names what chooses another mirror.
download() {
    local url=$1 file=$2 part=$2.part tries=1 wait=${FETCH_WAIT:-2} attempts=${FETCH_ATTEMPTS:-5} status code
    # A proxy or a server that falls silent is given up after a minute.
    local curl=(curl --fail --location --connect-timeout 30 --speed-limit 1 --speed-time 60 --silent --show-error)
    if [ -t 2 ]; then curl+=(--no-silent --progress-bar); fi
    need curl
    if [ "$(cat "$part.url" 2>/dev/null)" != "$url" ]; then
        rm -f "$part" # It was begun from another address.
        # In braces, so that the shell's own complaint isn't shown beside ours.
        { printf '%s\n' "$url" >"$part.url"; } 2>/dev/null || fail "can't write to $(dirname "$part"): is the disk full?"
    fi
    say "downloading $url$(if [ -s "$part" ]; then echo ", after $(kilobytes_of "$part") kB"; fi)"
    until code=$("${curl[@]}" --continue-at - --output "$part" --write-out '%{http_code}' "$url" </dev/null); do
        status=$?
        case $status-$code in
            22-416) break ;; # Nothing after what is here: the checks that follow say whether it is right.
            23-*) fail "$part can't be written to: is the disk full? What has come is kept, make room and run this again" ;;
            33-*) rm -f "$part" ;; # The server can't resume.
            22-408|22-425|22-429|22-5??) ;;
            22-*|[13]-*) tries=$attempts ;;
        esac
        if [ "$tries" -ge "$attempts" ]; then
            [ -s "$part" ] || rm -f "$part" "$part.url"
            fail "$url couldn't be had: curl ended with $status, the server answered ${code/000/nothing}. Is this machine" \
                "online? Run this again to go on with what has come; another mirror is chosen by $3"
        fi
        say "try $tries of $attempts failed; again in $wait s"
        sleep "$wait"
        tries=$((tries + 1))
        wait=$((wait * 2))
    done
    rm -f "$part.url"
    [ -f "$part" ] || : >"$part" # An empty file makes curl write none.
    mv "$part" "$file"
}
