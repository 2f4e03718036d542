"""Where things run: sentences where they cannot, and steps that are the same however they run."""

from __future__ import annotations

import pytest
import torch

from worldvae.devices import CapturedStep, autocast, on_threads, out_of_memory_in_words, pick_device, precision

CPU = torch.device("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA here")
@pytest.mark.parametrize("name", ["cuda", "cuda:1"])
def test_a_missing_gpu_is_said_in_words(name):
    with pytest.raises(ValueError, match="use --device cpu"):
        pick_device(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA here")
def test_auto_is_the_cpu_where_there_is_no_gpu():
    assert pick_device("auto") == CPU


def test_memory_that_is_not_there_is_said_in_words():
    with pytest.raises(RuntimeError, match=r"out of memory: lower batch_size \(now 7\)"):  # noqa: SIM117
        with out_of_memory_in_words("lower batch_size (now 7)"):
            torch.empty(1 << 60, dtype=torch.uint8)


def test_other_errors_pass_as_they_are():
    with pytest.raises(RuntimeError, match=r"^shapes$"), out_of_memory_in_words("lower batch_size"):
        raise RuntimeError("shapes")


def test_products_under_autocast_have_the_devices_precision():
    with autocast(CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == precision(CPU)


def test_a_step_on_the_cpu_is_called_as_it_is():
    step = CapturedStep(lambda x, y: {"sum": (x + y).sum()}, CPU)
    assert [step(torch.ones(n), torch.ones(n))["sum"].item() for n in (1, 2, 5, 2)] == [2, 4, 10, 4]


def test_one_thread_is_for_a_while():
    def fail() -> None:
        assert torch.get_num_threads() == 1
        raise ValueError("wrong")

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    with pytest.raises(ValueError, match="wrong"), on_threads(1):
        fail()
    assert torch.get_num_threads() == 3
    torch.set_num_threads(before)
