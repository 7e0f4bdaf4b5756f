#!/usr/bin/env bash
# Makes .venv in the repository root: torch, this package in editable form, AllenNLP and what it really needs.
usage() {
    cat <<'USAGE'
Usage: ./scripts/setup.sh [--peer] [--test] [--print-python] [--help]

Makes or completes .venv in the repository root. Safe to interrupt and to run again: it goes on where it was, and
does nothing but a check where all is installed.

  --peer          also install allennlp-models 2.10.1 and its needs (for comparison, and for its parsers)
  --test          also install what ./scripts/test.sh runs (pytest, hypothesis, ruff, mypy), and the libraries that
                  this package has integrations for (flair, spaCy, ONNX)
  --print-python  print the Python that would be used, and stop

Environment variables (what was chosen is remembered in .venv, so later runs need not repeat it):
  PYTHON            the Python to use, 3.10 to 3.13 (default: python3 if it fits, else the first of python3.13,
                    python3.12, python3.11, python3.10 that runs)
  TORCH_VERSION     the torch to install (default 2.13.0, which the tests passed on; 2.6 or later works)
  TORCH_INDEX_URL   the package index that torch comes from (default: wherever pip is set up to look)
  USE_SYSTEM_TORCH  1: use the torch that PYTHON already has, and install none
USAGE
}
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

VENV=.venv
started=$SECONDS
DEFAULT_TORCH=2.13.0
ALLENNLP=2.10.1    # and allennlp-models of the same version

say() { printf 'setup: %s\n' "$*" >&2; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }

want_extras=""
print_python=0
for argument in "$@"; do
    case $argument in
        --peer) want_extras="$want_extras peer" ;;
        --test) want_extras="$want_extras test" ;;
        --print-python) print_python=1 ;;
        -h|--help) usage; exit 0 ;;
        *) usage >&2; fail "expected one of the options above, got '$argument'" ;;
    esac
done

# --- Which Python -----------------------------------------------------------------------------------------------

# Runs the Python, because a name on the PATH may be a shim with nothing behind it. Prints the real executable.
fitting_python() {
    "$1" -c '
import sys
if not (3, 10) <= sys.version_info[:2] <= (3, 13):
    sys.exit(1)
import ensurepip, venv
print(sys.executable)' </dev/null 2>/dev/null
}

choose_python() {
    local candidate
    if [ -n "${PYTHON:-}" ]; then
        fitting_python "$PYTHON" || fail "PYTHON names '$PYTHON', which isn't a Python 3.10 to 3.13 that runs and has" \
            "venv and ensurepip; name another, or unset PYTHON to have one looked for"
        return
    fi
    for candidate in python3 python3.13 python3.12 python3.11 python3.10; do
        if fitting_python "$candidate"; then return; fi
    done
    fail "found no Python 3.10 to 3.13 that runs and has venv and ensurepip (looked for python3, python3.13," \
        "python3.12, python3.11, python3.10); install one (on Debian: python3 and python3-venv), or name it:" \
        "PYTHON=/path/to/python3 ./scripts/setup.sh"
}

if [ "$print_python" = 1 ]; then
    choose_python
    exit 0
fi

# --- What was chosen now or before ------------------------------------------------------------------------------

STAMP=$VENV/setup.stamp        # what the last complete run installed
CHOICES=$VENV/setup.choices    # the variables it was given
remembered() { if [ -f "$2" ]; then sed -n "s/^$1=//p" "$2" | head -n 1; fi; }

TORCH_VERSION=${TORCH_VERSION-$(remembered TORCH_VERSION "$CHOICES")}
TORCH_INDEX_URL=${TORCH_INDEX_URL-$(remembered TORCH_INDEX_URL "$CHOICES")}
USE_SYSTEM_TORCH=${USE_SYSTEM_TORCH-$(remembered USE_SYSTEM_TORCH "$CHOICES")}
torch_version=${TORCH_VERSION:-$DEFAULT_TORCH}
USE_SYSTEM_TORCH=${USE_SYSTEM_TORCH:-0}
case $USE_SYSTEM_TORCH in
    0|1) ;;
    *) fail "USE_SYSTEM_TORCH must be 0 or 1, got '$USE_SYSTEM_TORCH'" ;;
esac

# What an earlier run installed stays wanted, so that a plain run after --peer isn't a change.
extras=""
for extra in peer test; do
    case " $want_extras $(remembered extras "$STAMP") " in
        *" $extra "*) extras="$extras $extra" ;;
    esac
done
extras=${extras# }

# --- The environment itself -------------------------------------------------------------------------------------

step="making $VENV"
report() {
    local code=$?
    if [ "$code" -ne 0 ] && [ -n "$step" ]; then
        say "stopped while $step (exit code $code); run it again to go on from there"
    fi
}
trap report EXIT
give_up() { step=""; fail "$@"; }

mkdir -p "$VENV"
if command -v flock >/dev/null 2>&1; then
    exec 9>"$VENV/setup.lock"
    flock -n 9 || { say "another run is at work on $VENV, waiting for it"; flock 9; }
fi

venv_python() { "$VENV/bin/python" "$@" </dev/null; }

if [ "$USE_SYSTEM_TORCH" = 1 ]; then system_packages=true; else system_packages=false; fi

# False for one whose making was interrupted, whose Python is gone, that was moved here, or of the other kind.
venv_works() {
    [ -x "$VENV/bin/python" ] && venv_python -c 'import pip' >/dev/null 2>&1 &&
        grep -qF "$(pwd -P)/$VENV" "$VENV/bin/activate" &&
        grep -q "^include-system-site-packages *= *$system_packages" "$VENV/pyvenv.cfg"
}

if venv_works; then
    if [ -n "${PYTHON:-}" ]; then
        wanted=$(choose_python) || { step=""; exit 1; }
        identity='import sys; print(sys.version.split()[0], "in", sys.base_prefix)'
        if [ "$("$wanted" -c "$identity" </dev/null)" != "$(venv_python -c "$identity")" ]; then
            give_up "PYTHON names $wanted, but $VENV was made with Python $(venv_python -c "$identity");" \
                "remove $VENV to change, or unset PYTHON to keep it"
        fi
    fi
else
    python=$(choose_python) || { step=""; exit 1; }
    say "making $VENV with $python"
    if [ "$USE_SYSTEM_TORCH" = 1 ]; then
        "$python" -m venv --clear --system-site-packages "$VENV" </dev/null
    else
        "$python" -m venv --clear "$VENV" </dev/null
    fi
fi

# --- Installing -------------------------------------------------------------------------------------------------

checksum() { cksum | tr ' ' '-'; }
key=$({
    cat pyproject.toml scripts/setup.sh
    grep '^__version__' transformer_elmo/__init__.py
    cat transformer_elmo/torchvision_stand_in.py
    printf '%s\n' "$torch_version" "$TORCH_INDEX_URL" "$USE_SYSTEM_TORCH"
} | checksum)

if [ "$(remembered key "$STAMP")" = "$key" ] && [ "$(remembered extras "$STAMP")" = "$extras" ]; then
    say "$VENV is up to date"
else
    printf '%s\n' "extras=$extras" >"$STAMP" # Without its key: what is wanted, not yet there.
    printf '%s\n' "TORCH_VERSION=$TORCH_VERSION" "TORCH_INDEX_URL=$TORCH_INDEX_URL" \
        "USE_SYSTEM_TORCH=$USE_SYSTEM_TORCH" >"$CHOICES"

    # A pip that was killed leaves packages it wrote in part: without the RECORD that it writes last, or renamed to ~.
    site_packages=$(venv_python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
    for folder in "$site_packages"/*.dist-info; do
        if [ -d "$folder" ] && [ ! -f "$folder/RECORD" ]; then rm -rf "$folder"; fi
    done
    rm -rf "$site_packages"/~*

    export PIP_DISABLE_PIP_VERSION_CHECK=1
    quiet=--quiet
    if [ -t 2 ]; then quiet=""; fi
    # pip would warn that AllenNLP's old pins aren't met: they can't be, on this Python.
    pip_install() { venv_python -m pip install $quiet --no-input --no-warn-conflicts "$@"; }

    # What pyproject.toml declares for this, and AllenNLP's own distributions, which go without what they declare.
    declared=allennlp,hdf5
    bare="allennlp==$ALLENNLP"
    case " $extras " in *" peer "*) declared=$declared,peer bare="$bare allennlp-models==$ALLENNLP" ;; esac
    case " $extras " in *" test "*) declared=$declared,test,flair,spacy,onnx ;; esac

    if [ "$USE_SYSTEM_TORCH" = 1 ]; then
        step="looking for the torch of this Python"
        venv_python -c 'import torch' || give_up "USE_SYSTEM_TORCH=1, but this Python has no torch that can be" \
            "imported; install one there, or unset USE_SYSTEM_TORCH (USE_SYSTEM_TORCH=0) to have one installed"
    else
        step="installing torch $torch_version"
        say "$step"
        pip_install ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} "torch==$torch_version"
    fi
    torch_before=$(venv_python -c 'import torch; print(torch.__version__)' 2>/dev/null)

    step="installing this package and what AllenNLP needs"
    say "$step"
    pip_install --editable ".[$declared]"

    step="installing AllenNLP"
    say "$step"
    # shellcheck disable=SC2086  # requirements hold no spaces
    pip_install --no-deps $bare

    step="looking for torchvision"
    venv_python -m transformer_elmo.torchvision_stand_in >&2

    step="looking for the torch that was chosen"
    torch_after=$(venv_python -c 'import torch; print(torch.__version__)' 2>/dev/null)
    if [ "$torch_before" != "$torch_after" ]; then
        give_up "torch $torch_before was chosen, but the other packages replaced it by $torch_after;" \
            "choose one that this package supports (2.6 or later)"
    fi
fi

# --- Does it work? ----------------------------------------------------------------------------------------------

step="running allennlp --version"
"$VENV/bin/allennlp" --version </dev/null
step="importing the plugin"
venv_python -W ignore -c 'import transformer_elmo.plugin, torch, sys
print(f"transformer_elmo imports, with torch {torch.__version__} on Python {sys.version.split()[0]}")'
step="looking for the command transformer-elmo"
[ -x "$VENV/bin/transformer-elmo" ]
step=""
printf '%s\n' "key=$key" "extras=$extras" >"$STAMP.new"
mv "$STAMP.new" "$STAMP"
say "done in $((SECONDS - started)) s; use it with: . $VENV/bin/activate"
