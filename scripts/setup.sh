# Sourced by run.sh and test.sh: makes .venv with pinned packages, once. Usage: set_up EXTRAS
# PYTHON names the interpreter (default python3).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

set_up() {
    local extras=$1 python=${PYTHON:-python3} stamp
    stamp=".venv/set-up-$extras-$(cat pyproject.toml scripts/constraints.txt | cksum | tr -d ' \n')"
    if [ -e "$stamp" ] || [ -e "${stamp/set-up-$extras-/set-up-dev-}" ]; then return; fi # dev holds all
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
        echo "error: worldvae needs Python >= 3.11; name one by PYTHON=/path/to/python" >&2
        exit 1
    fi
    echo "setting up .venv (once; a minute or two)"
    [ -x .venv/bin/python ] || "$python" -m venv .venv
    .venv/bin/python -m pip install --quiet -c scripts/constraints.txt torch==2.13.0
    .venv/bin/python -m pip install --quiet -c scripts/constraints.txt -e ".[$extras]"
    touch "$stamp"
}
