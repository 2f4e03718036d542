"""Stage 7: one offline page about a run."""

from __future__ import annotations

from agents.report import write_report
from scripts import cli


def main(run: cli.Run) -> None:
    """Write RUN/report.html from what the other stages left in RUN, and print the score table."""
    print(write_report(run))


if __name__ == "__main__":
    cli.run(main)
