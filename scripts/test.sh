#!/usr/bin/env bash
# Sets everything up and runs the tests; arguments go to pytest.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
set_up dev
# EnvPool has no wheels for some platforms; its tests are skipped there.
if [ ! -e .venv/tried-envpool ]; then
    .venv/bin/python -m pip install --quiet -c scripts/constraints.txt envpool || echo "EnvPool cannot be installed here"
    touch .venv/tried-envpool
fi
export OMP_NUM_THREADS=1 # a test file a process, each on one thread
exec .venv/bin/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder "$@"
