"""Command lines, one for each stage of the pipeline: ``python -m scripts.<stage> --help``."""
