"""The training benchmark runs end to end on little, and compares what it says it compares."""

from __future__ import annotations

import json
import math

import pytest

from scripts import bench_train
from tests.dots import record_dots


def entries(*told: tuple[float, float]) -> list[dict[str, float]]:
    return [{"seconds": seconds, "elbo": elbo} for seconds, elbo in told]


def test_the_ratio_is_the_time_until_the_other_ones_last_elbo():
    plain = entries((10, -300), (20, -100), (40, -120))
    assert bench_train.time_ratio(plain, entries((1, -500), (4, -119), (8, -50))) == 10
    assert bench_train.time_ratio(plain, entries((1, -500), (4, -121))) is None


def test_the_record_has_all_that_a_reader_compares(tmp_path, capsys):
    record_dots(tmp_path / "rollouts", episodes=8)
    out = tmp_path / "train.json"
    bench_train.main(tmp_path, frames=64, seeds=1, passes=1, our_passes=1, rounds=1, out=out, as_json=True)
    told = json.loads(out.read_text())
    assert json.loads(capsys.readouterr().out) == told
    for part in (
        "elbo_time_ratio",
        "encode",
        "training",
        "data_path",
        "peak_memory_mib",
        "machine",
        "command",
        "commit",
    ):
        assert part in told
    assert told["checkpoint_bytes"] < 2_000_000
    assert all(0 < rate < math.inf for name in told["encode"].values() for rate in name["frames_per_second"].values())
    assert all(row["share_of_matmul_peak"] > 0 for row in told["training"].values())
    assert "plain's last ELBO" in bench_train.show(told)


def test_too_few_frames_are_said_in_words(tmp_path):
    record_dots(tmp_path / "rollouts", episodes=4)
    with pytest.raises(ValueError, match="this takes 10000: collect more"):
        bench_train.main(tmp_path, frames=10_000, out=tmp_path / "train.json")
