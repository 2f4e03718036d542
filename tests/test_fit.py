"""The training loop: interrupted equals unbroken, logs are whole, broken losses are named."""

from __future__ import annotations

import signal

import pytest
import torch

from worldvae.checkpoint import CheckpointError, load_tree
from worldvae.fit import FitConfig, fit, read_log


class Regression:
    """A line fitted to noise by Adam: its result depends on every batch, in order."""

    def __init__(self, stop_at: int | None = None):
        torch.manual_seed(0)
        self.line = torch.nn.Linear(3, 1)
        self.optimiser = torch.optim.Adam(self.line.parameters(), 0.01)
        self.generator = torch.Generator().manual_seed(0)
        self.stop_at, self.steps = stop_at, 0

    def step(self, batch):
        if self.steps == self.stop_at:
            raise KeyboardInterrupt
        self.steps += 1
        noise = torch.randn(1, generator=self.generator)
        loss = (self.line(batch) - batch.sum(1, keepdim=True) + noise).square().mean()
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        return {"loss": loss.detach()}

    def batches(self, start):
        step = start
        while True:
            yield torch.rand(8, 3, generator=torch.Generator().manual_seed(step))
            step += 1

    def state_dict(self):
        return {
            "line": self.line.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state):
        self.line.load_state_dict(state["line"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.generator.set_state(state["generator"])


def train(folder, stop_at=None, **settings):
    model = Regression(stop_at)
    config = FitConfig(steps=30, log_every=5, checkpoint_every=10, **settings)
    return model, fit(model.step, model.batches, model, config, folder)


def without_time(entries):
    return [{key: value for key, value in entry.items() if key != "seconds"} for entry in entries]


@pytest.mark.parametrize("stop_at", [0, 7, 10, 25])
def test_an_interrupted_run_equals_an_unbroken_one(tmp_path, stop_at):
    unbroken, log = train(tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "b", stop_at)
    resumed, resumed_log = train(tmp_path / "b")
    for ours, theirs in zip(unbroken.line.parameters(), resumed.line.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert [entry["step"] for entry in resumed_log] == [entry["step"] for entry in log]


@pytest.fixture(params=[signal.SIGINT, signal.SIGTERM])
def stop(request):
    """Sends this process what ends a command line."""
    before = signal.signal(request.param, signal.default_int_handler)
    yield lambda: signal.raise_signal(request.param)
    assert signal.getsignal(request.param) is signal.default_int_handler
    signal.signal(request.param, before)


def test_what_comes_in_the_middle_of_a_step_lets_the_step_end(tmp_path, stop):
    unbroken, _ = train(tmp_path / "a")
    model = Regression()

    def step(batch):
        if model.steps == 12:
            stop()
        return model.step(batch)

    with pytest.raises(KeyboardInterrupt):
        fit(step, model.batches, model, FitConfig(30, 5, 10), tmp_path / "b")
    assert load_tree(tmp_path / "b" / "training.safetensors")["step"] == 13
    resumed, _ = train(tmp_path / "b")
    for ours, theirs in zip(unbroken.line.parameters(), resumed.line.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_second_one_does_not_wait_and_leaves_the_checkpoint_as_it_was(tmp_path, stop):
    model = Regression()

    def step(batch):
        metrics = model.step(batch)
        if model.steps == 13:
            stop()
            stop()
        return metrics

    with pytest.raises(KeyboardInterrupt):
        fit(step, model.batches, model, FitConfig(30, 5, 10), tmp_path)
    assert load_tree(tmp_path / "training.safetensors")["step"] == 10


def test_what_was_logged_after_the_last_checkpoint_is_not_logged_twice(tmp_path):
    _, log = train(tmp_path / "a")
    killed = Regression()
    killed_steps = iter(range(17))  # checkpoint at 10, logs at 5, 10 and 15

    def dies(batch):
        if next(killed_steps, None) is None:
            raise SystemError("killed")
        return killed.step(batch)

    with pytest.raises(SystemError):
        fit(dies, killed.batches, killed, FitConfig(30, 5, 10), tmp_path / "b")
    with open(tmp_path / "b" / "metrics.jsonl", "a") as file:
        file.write('{"step": 16, "lo')  # the line it died in
    _, resumed = train(tmp_path / "b")
    assert without_time(resumed) == without_time(log)
    assert without_time(read_log(tmp_path / "b" / "metrics.jsonl")) == without_time(log)


def test_tensorboard_reads_what_was_logged(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    _, log = train(tmp_path)
    (file,) = tmp_path.glob("events.out.tfevents.*")
    first, *events = EventFileLoader(str(file)).Load()
    assert first.file_version == "brain.Event:2"
    assert [event.step for event in events] == [entry["step"] for entry in log]
    for event, entry in zip(events, log, strict=True):
        told = {value.tag: value.tensor.float_val[0] for value in event.summary.value}
        assert told == pytest.approx(entry)


def test_what_was_begun_goes_on_under_its_own_settings_alone(tmp_path):
    def go_on(steps, **settings):
        model = Regression()
        return fit(model.step, model.batches, model, FitConfig(steps, 5, 10), tmp_path, settings=settings)

    go_on(10, rate=0.1, clip=[0, 1])
    with pytest.raises(CheckpointError, match=r"other settings \(rate\).*begin in another folder"):
        go_on(20, rate=0.2, clip=[0, 1])
    assert len(go_on(20, rate=0.1, clip=[0, 1])) == 4


def test_a_broken_state_is_not_saved(tmp_path):
    """Interrupted after its loss is lost and before that is logged."""
    train(tmp_path, stop_at=None)
    before = (tmp_path / "training.safetensors").read_bytes()
    model = Regression()

    def step(batch):
        return {"loss": model.step(batch)["loss"] * float("nan")}

    def stopped(start):
        batches = model.batches(start)
        yield next(batches)
        yield next(batches)
        raise KeyboardInterrupt

    with pytest.raises(FloatingPointError, match="no longer finite at step 32"):
        fit(step, stopped, model, FitConfig(40, 5, 10), tmp_path)
    assert (tmp_path / "training.safetensors").read_bytes() == before


def test_a_finished_run_is_not_trained_again(tmp_path):
    train(tmp_path)
    again, log = train(tmp_path, stop_at=0)
    assert again.steps == 0
    assert log[-1]["step"] == 30


def test_a_loss_that_is_not_finite_is_named_with_its_step(tmp_path):
    model = Regression()
    with pytest.raises(FloatingPointError, match=r"loss is no longer finite at step 5: begin in another folder"):
        fit(lambda b: {"loss": model.step(b)["loss"] / 0}, model.batches, model, FitConfig(30, 5, 10), tmp_path)


def test_logged_numbers_are_means_since_the_last_entry(tmp_path):
    values = iter(torch.arange(1.0, 11.0))
    model = Regression()
    log = fit(lambda b: {"x": next(values)}, model.batches, model, FitConfig(10, 4), tmp_path, observe=lambda: {"y": 7})
    assert [(entry["step"], entry["x"], entry["y"]) for entry in log] == [(4, 2.5, 7), (8, 6.5, 7), (10, 9.5, 7)]


def test_a_time_limit_ends_training_with_a_log_entry_and_a_checkpoint(tmp_path):
    _, log = train(tmp_path, seconds=0.0)
    assert [entry["step"] for entry in log] == [1]
    assert (tmp_path / "training.safetensors").exists()


def test_a_process_that_does_not_lead_learns_the_same_and_writes_nothing(tmp_path):
    leading, _ = train(tmp_path / "a")
    following = Regression()
    told = fit(following.step, following.batches, following, FitConfig(30, 5, 10), tmp_path / "b", leads=False)
    assert told == []
    assert not (tmp_path / "b").exists()
    for ours, theirs in zip(leading.line.parameters(), following.line.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_stream_of_batches_is_closed_when_training_stops(tmp_path):
    model, closed = Regression(stop_at=3), []

    def batches(start):
        try:
            yield from model.batches(start)
        finally:
            closed.append(start)

    with pytest.raises(KeyboardInterrupt):
        fit(model.step, batches, model, FitConfig(30, 5, 10), tmp_path)
    assert closed == [0]
