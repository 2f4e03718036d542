"""A run's folder -> one ``report.html`` that opens offline, and the score table in words."""

from __future__ import annotations

import base64
import html
import json
from pathlib import Path
from typing import Any

import numpy as np

from agents.evaluation import spread
from worldvae.checkpoint import read_json, write_atomically
from worldvae.fit import read_log
from worldvae.pictures import figure, png

# (who, return, env steps or '', source): CarRacing-v0 is an older version of the same task.
PUBLISHED = {
    "CarRacing": [
        ("World Models, z + h", "906 ± 21", "about 1.8 billion", "Ha & Schmidhuber 2018, published on v0"),
        ("World Models, z only", "632 ± 251", "", "Ha & Schmidhuber 2018, published on v0"),
        ("PPO-LSTM on pixels", "862.5 ± 97.3", "4,000,000", "stable-baselines3 zoo"),
        ("DQN", "343 ± 18", "", "cited in Ha & Schmidhuber 2018, v0"),
    ],
    "TakeCover": [
        ("World Models, dreams alone", "1092 ± 556", "3,080,000", "Ha & Schmidhuber 2018"),
        ("random policy, published", "210 ± 108", "", "Ha & Schmidhuber 2018"),
    ],
}
PICTURES = {
    "reconstructions": "Held-out frames above their reconstructions",
    "traversals": "Each row moves one latent from -3 to 3, those with the largest KL first",
    "interpolations": "Decoded points on the line between two frames' codes",
    "prior_samples": "Frames decoded from draws of the prior",
}
STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse}td,th{padding:.2rem .8rem;border-bottom:1px solid #ddd;text-align:right}"
    "td:first-child,th:first-child{text-align:left}img{max-width:100%}pre{background:#f5f5f5;padding:1rem;overflow:auto}"
)


def write_report(run: Path) -> str:
    """Writes ``run``/report.html from what the stages left there; returns the score table as text.

    Raises CheckpointError where a stage's record is missing, ImportError without matplotlib.
    """
    evaluation, random = read_json(run / "evaluation.json"), read_json(run / "random.json")
    played = evaluation["env_steps"]["train"] > 0  # else it has learned in dreams, whose returns are not reality's
    learning = [("Learning", _learning(run, evaluation, random))] if played else []
    sections = [
        ("Scores", _table(("who", "return", "env steps", "source"), score_rows(evaluation, random))),
        ("Cost", _table(("", "env steps", "wall seconds"), _cost_rows(evaluation))),
        *learning,
        ("Film", _film(run / "pictures" / "film.webm", "real | reconstruction")),
        *((title, _picture(run / "pictures" / f"{name}.png")) for name, title in PICTURES.items()),
        ("The codec", _table(("", ""), _codec_rows(evaluation))),
        ("Diagnosis of the codec", _diagnosis(run / "vae")),
        ("Latents", _image(_latent_bars(read_json(run / "latents" / "statistics.json")), "png")),
        ("Bytes per frame", _table(("stored as", "bytes", "PSNR dB"), _size_rows(run / "latents" / "sizes.json"))),
        ("The world model on held-out episodes", _forecasts(run / "dynamics" / "forecasts.json")),
        ("A dream", _film(run / "pictures" / "dream.webm", "real | reconstruction | dream, by the same actions")),
        ("Its steps 1, 2, 4, 8, ...: real, reconstruction, dream", _picture(run / "pictures" / "dream.png")),
        ("To reproduce", _commands(run, evaluation)),
        ("Settings of codec and agent", _pre(json.dumps(evaluation["config"], indent=1))),
    ]
    body = "".join(f"<h2>{html.escape(title)}</h2>{content}" for title, content in sections)
    title = f"worldvae: {evaluation['env']}, training seed {evaluation['train_seed']}"
    head = f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{STYLE}</style>"
    write_atomically(run / "report.html", f"{head}<h1>{title}</h1>{body}</html>".encode())
    return score_text(evaluation, random) + f"\nreport: {(run / 'report.html').resolve()}"


def score_rows(evaluation: dict[str, Any], random: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """This run's agent, the random policy on the same episodes, and published scores where there are any."""
    count = len(evaluation["returns"])
    source = f"measured, {count} episodes of {evaluation['env_version']}"
    rows = [
        ("this run", _spread(evaluation), f"{evaluation['env_steps_total']:,}", source),
        ("random policy, same episodes", _spread(random), "0", source),
    ]
    return rows + [row for task, known in PUBLISHED.items() if task in evaluation["env"] for row in known]


def score_text(evaluation: dict[str, Any], random: dict[str, Any]) -> str:
    """The score table for a terminal."""
    rows = [("who", "return", "env steps", "source"), *score_rows(evaluation, random)]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def _spread(evaluation: dict[str, Any]) -> str:
    low, high = evaluation["ci95"]
    return f"{spread(evaluation['mean'], evaluation['sd'])} [{low:.0f}, {high:.0f}]"


def _learning(run: Path, evaluation: dict[str, Any], random: dict[str, Any]) -> str:
    """``draw_learning`` of one run, the random policy beside it."""
    page = figure(11, 4)
    left, right = page.subplots(1, 2, sharey=True)
    draw_learning(left, right, {run / "agent": evaluation})
    for axes in (left, right):
        axes.axhline(random["mean"], color="grey", linestyle=(0, (1, 8)), label="random policy")
    right.legend(loc="best", fontsize="small")
    return _image(png(page), "png") + "<p>Returns while exploring (mean of 30).</p>"


def draw_learning(by_steps: Any, by_minutes: Any, agents: dict[Path, dict[str, Any]]) -> None:
    """Returns while exploring against env steps and against minutes, on two axes; dashed what the agents' evaluations
    found, grey what is published.

    Args:
        agents: their folders, and their evaluations.
    """
    for folder, told in agents.items():
        log = [entry for entry in read_log(folder / "metrics.jsonl") if "return" in entry]
        collected, spent = told["env_steps"]["collect"], told["wall_seconds"]
        before = spent["collect"] + spent["train"] - (log[-1]["seconds"] if log else 0)
        label, returns = f"training seed {told['train_seed']}, while exploring", [entry["return"] for entry in log]
        by_steps.plot([(entry["env_steps"] + collected) / 1000 for entry in log], returns, label=label)
        by_minutes.plot([(entry["seconds"] + before) / 60 for entry in log], returns, label=label)
    by_steps.set(xlabel="thousand env steps, collecting included", ylabel="return", xlim=(0, None))
    by_minutes.set(xlabel="minutes, collecting and codec included", ylabel="return", xlim=(0, None))
    mean = float(np.mean([told["mean"] for told in agents.values()]))
    task = next(iter(agents.values()))["env"]
    known = [row for name, rows in PUBLISHED.items() if name in task for row in rows]
    for axes in (by_steps, by_minutes):
        axes.axhline(mean, color="black", linestyle="--", label=f"mean over test episodes: {mean:.0f}")
        for (who, score, *_), style in zip(known, (":", "-.", (0, (1, 4)), (0, (5, 5))), strict=False):
            axes.axhline(float(score.split()[0]), color="grey", linestyle=style, linewidth=1, label=f"{who}: {score}")
        axes.grid(alpha=0.3)


def _latent_bars(statistics: dict[str, list[float]]) -> bytes:
    """Each latent's KL, and the mean and spread of its posterior means, largest KL first, as PNG."""
    page = figure(11, 4)
    left, right = page.subplots(1, 2)
    order = sorted(range(len(statistics["kl"])), key=lambda j: -statistics["kl"][j])
    kl, mean, sd = ([statistics[name][j] for j in order] for name in ("kl", "mean", "sd"))
    left.bar(range(len(order)), kl)
    left.set(xlabel="latent, by KL", ylabel="KL to the prior, nats per frame")
    right.errorbar(range(len(order)), mean, sd, fmt="o", capsize=2)
    right.set(xlabel="latent, by KL", ylabel="posterior means: mean ± sd over frames")
    return png(page)


def _cost_rows(evaluation: dict[str, Any]) -> list[tuple[str, ...]]:
    steps, wall = evaluation["env_steps"], evaluation["wall_seconds"]
    stages = ("collect", "train", "select", "evaluate")
    rows = [(name, f"{steps.get(name, 0):,}", f"{wall[name]:.0f}" if name in wall else "") for name in stages]
    rows[-1] = ("evaluate", f"({sum(evaluation['lengths']):,})", rows[-1][2])
    total = f"{wall['collect'] + wall['train']:.0f}"
    return [
        *rows,
        ("until the trained agent", f"{evaluation['env_steps_total']:,}", total),
        (evaluation["machine"], "", ""),
    ]


def _codec_rows(evaluation: dict[str, Any]) -> list[tuple[str, str]]:
    vae = evaluation["config"]["vae"]
    names = ("latent_size", "frames", "passes", "held_out_reconstruction", "held_out_kl", "psnr", "active_units")
    return [(name.replace("_", " "), f"{vae[name]:.5g}") for name in names]


def _diagnosis(codec: Path) -> str:
    """The verdicts of ``scripts.diagnose``, and its page of pictures."""
    if not (codec / "diagnosis.json").exists():
        return "<p>not asked for: python -m scripts.diagnose CODEC ROLLOUTS</p>"
    told = json.loads((codec / "diagnosis.json").read_text())["verdicts"]
    words = [f"<b>{html.escape(v['name'])}</b>: {html.escape(v['says'])}. {html.escape(v['remedy'])}." for v in told]
    return f"<p>{'<br>'.join(words) or 'healthy'}</p>" + _picture(codec / "diagnosis.png")


def _size_rows(path: Path) -> list[tuple[str, str, str]]:
    return [(name, f"{row['bytes']:.0f}", f"{float(row['psnr']):.1f}") for name, row in read_json(path).items()]


def _forecasts(path: Path) -> str:
    """NLL per step and open-loop error of the world model and both baselines."""
    if not path.exists():
        return "<p>not trained</p>"
    scores = read_json(path)
    horizons = list(scores["world model"]["open_loop"])
    head = ("", "NLL, nats per step", *(f"error at +{k}" for k in horizons))
    rows = [(who, f"{s['nll']:.2f}", *(f"{s['open_loop'][k]:.3f}" for k in horizons)) for who, s in scores.items()]
    return _table(head, rows) + (
        "<p>Lower is better; an NLL below zero is no bug (a density may exceed 1). Error: squared, of open-loop "
        "forecasts so many steps ahead, over the codes' variance (1: knowing nothing).</p>"
    )


def _commands(run: Path, evaluation: dict[str, Any]) -> str:
    if (run / "run.json").exists():
        flags = " ".join(f"--{name} {value}" for name, value in read_json(run / "run.json").items())
        command = f"bash scripts/run.sh {flags} --out runs/again"
    else:
        command = "# then collect, train_vae, encode, train_agent and evaluate with the settings below"
    return _pre(f"git checkout {evaluation['commit'].rstrip('+')}\n{command}")


def _table(head: tuple[str, ...], rows: list[Any]) -> str:
    def row(cells: tuple[str, ...], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return "<table>" + row(head, "th") + "".join(row(cells, "td") for cells in rows) + "</table>"


def _pre(text: str) -> str:
    return f"<pre>{html.escape(text)}</pre>"


def _image(data: bytes, kind: str) -> str:
    return f'<img alt="" src="data:image/{kind};base64,{base64.b64encode(data).decode()}">'


def _picture(path: Path) -> str:
    return _image(path.read_bytes(), "png") if path.exists() else "<p>not made</p>"


def _film(path: Path, columns: str) -> str:
    """The WebM, which is smaller than the GIF."""
    if not path.exists():
        return "<p>not made</p>"
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<video controls loop muted autoplay src="data:video/webm;base64,{data}"></video><p>{columns}</p>'
