#!/usr/bin/env bash
# From a bare machine (Python >= 3.11, bash, pip) to a trained and scored agent and report.html.
# Options: --preset quick|carracing|carracing-robust|takecover|takecover4|tiny, --out DIR, --seed N, --backend ..., --resume; see --help.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
extras=carracing,evolution,report
case " $* " in *takecover*) extras+=,doom ;; esac
set_up "$extras"
set_up_envpool
exec .venv/bin/python -m scripts.pipeline "$@"
