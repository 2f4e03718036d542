#!/usr/bin/env bash
# From a bare machine (Python >= 3.11, bash, pip) to a trained and scored agent and report.html.
# Options: --preset NAME, --out DIR, --seed N, --rounds N, --resume; --help says what they are.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
extras=carracing,evolution,report
case " $* " in *takecover*) extras+=,doom ;; esac
set_up "$extras"
exec .venv/bin/python -m scripts.pipeline "$@"
