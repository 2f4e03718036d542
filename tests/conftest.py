"""What every test file may count on: our own environments are registered, and examples repeat."""

from __future__ import annotations

import signal

import pytest
from hypothesis import HealthCheck, settings

import tests.pixel_env  # noqa: F401

# The same examples in every run; a test that takes tmp_path writes each example over the last.
settings.register_profile(
    "tests", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.load_profile("tests")

# A shell's background jobs ignore Ctrl-C, and whatever they start does too; the tests press it.
signal.signal(signal.SIGINT, signal.default_int_handler)

LONG = (
    *("test_readme", "test_learning", "test_evolution", "test_pipeline", "test_diagnose", "test_bench_gpu"),
    *("test_damage", "test_training", "test_distributed", "test_compare"),
)
"""Files that take longest, longest first: begun last, one of them would keep one core busy and the other idle."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))
