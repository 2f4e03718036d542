"""Command lines, one for each stage of the pipeline: ``python -m scripts.<stage> --help``."""

import os
import signal
import sys

# Before torch loads OpenMP: threads that wait spin for an instant only, or any other program slows training threefold.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

if sys.argv[0] == "-m" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # a command that is still importing has nothing to save; ``scripts.cli.run`` takes Ctrl-C back
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
