"""Several training seeds -> one record, one table and one picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np

from agents.report import draw_learning
from scripts import cli
from scripts.run_folder import RunFolder
from worldvae.checkpoint import read_json, write_atomically, write_record
from worldvae.frames import Frames
from worldvae.pictures import figure, png


def picture(runs: list[RunFolder], evaluations: list[dict[str, Any]], path: Path, moments: tuple[int, ...]) -> None:
    """real | reconstruction at some moments of the first run's film, and all learning curves against env steps and
    minutes, beside what is published."""
    stills = np.concatenate(film_stills(runs[0].pictures / "film.webm", moments))
    drawn = figure(14, 4.4)
    left, by_steps, by_minutes = drawn.subplots(1, 3, width_ratios=(stills.shape[1] / stills.shape[0], 1.4, 1.4))
    _show(left, stills)
    draw_learning(by_steps, by_minutes, {run.agent: told for run, told in zip(runs, evaluations, strict=True)})
    by_minutes.legend(loc="lower right", fontsize="small")
    write_atomically(path, png(drawn))


def film_stills(film: Path, moments: tuple[int, ...]) -> list[Frames]:
    """The film's images at these frame numbers, or its last ones where it is shorter."""
    capture = cv2.VideoCapture(str(film))
    last = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) - 1
    images = []
    for moment in moments:
        capture.set(cv2.CAP_PROP_POS_FRAMES, min(moment, last))
        found, image = capture.read()
        if not found:
            raise ValueError(f"cannot read frame {moment} of {film}")
        images.append(np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8))
    return images


def _show(axes: Any, image: Frames) -> None:
    axes.imshow(image)
    axes.set_title("real | reconstruction")
    axes.axis("off")


def main(
    runs: cli.Runs,
    out: Path = Path("benchmarks/carracing.json"),
    moments: tuple[int, ...] = (30, 90),
) -> None:
    """Gather the RUNS' evaluations into OUT (a list), draw OUT with .png, and print the table."""
    folders = [RunFolder(run) for run in runs]
    evaluations = [read_json(folder.path / "evaluation.json") for folder in folders]
    write_record(out, evaluations)
    picture(folders, evaluations, out.with_suffix(".png"), moments)
    rows: list[tuple[Any, ...]] = [("training seed", "mean", "sd", "lowest", "env steps", "minutes", "random")]
    for folder, told in zip(folders, evaluations, strict=True):
        minutes = (told["wall_seconds"]["collect"] + told["wall_seconds"]["train"]) / 60
        random = read_json(folder.path / "random.json")["mean"]
        lowest, steps = min(told["returns"]), told["env_steps_total"]
        rows.append((told["train_seed"], told["mean"], told["sd"], lowest, steps, minutes, random))
    print(cli.table(rows))
    print(f"mean over seeds: {np.mean([told['mean'] for told in evaluations]):.1f}")


if __name__ == "__main__":
    cli.run(main)
