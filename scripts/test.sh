#!/usr/bin/env bash
# Sets everything up and runs the tests; arguments go to pytest.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
set_up dev
set_up_envpool
exec .venv/bin/python -m pytest "$@"
