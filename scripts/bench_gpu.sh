#!/usr/bin/env bash
# What a GPU makes of training, encoding, the agent, the world model and dreams: benchmarks/*gpu.json.
# To try it without one: bash scripts/bench_gpu.sh --device cpu --tiny
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=.venv/bin/python
[ -x "$python" ] || python=python3
python=${PYTHON:-$python} # PYTHON names another that has torch with CUDA
device=(--device cuda)
case " $* " in *" --device "*) device=() ;; esac
"$python" -m scripts.bench_gpu "${device[@]}" "$@"
"$python" -m scripts.bench_agents "${device[@]}" "$@" --out benchmarks/agents_gpu.json
"$python" -m scripts.bench_dream "${device[@]}" "$@" --dreams 1024 16384 131072 --out benchmarks/dream_gpu.json
