"""What a job says: one line an error, exit codes, live progress, the leaderboard."""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from gift_ray.errors import GiftError

OK, FAILED, INTERRUPTED = 0, 1, 130
VERDICT = ("objective", "resistance", "retention")
# A pipe has no width: wide enough for a leaderboard row.
console = Console(width=None if sys.stdout.isatty() else 150, soft_wrap=True, highlight=False)


def job_parser(description: str) -> argparse.ArgumentParser:
    """The arguments that every job on a study takes."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="a study, as configs/demo.yaml")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="dotted overrides, as defense.beta=0.3"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    return parser


def run_job(main: Callable[[argparse.Namespace], int], parser: argparse.ArgumentParser) -> int:
    """Parse the arguments, run the job, and turn its end into an exit code."""
    try:
        return main(parser.parse_intermixed_args())
    except GiftError as error:
        for line in error.mistakes:
            print(f"error: {' '.join(line.split())}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted; the same command continues", file=sys.stderr)
        return INTERRUPTED


class LiveProgress:
    """Follows a board while a block runs: a bar on a terminal, a line a unit anywhere.

    Args:
        since: gives the board's events after the first n.
        total: how many units are expected (a search may end with fewer).
    """

    def __init__(self, since: Callable[[int], list[Any]], total: int) -> None:
        self._since, self._total = since, total
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            console=console, disable=not console.is_terminal,
        )  # fmt: skip
        self._seen, self._ended, self._started = 0, 0, time.monotonic()

    def __enter__(self) -> LiveProgress:
        self._bar.start()
        self._task = self._bar.add_task("units", total=self._total)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join(timeout=10)
        self._bar.stop()

    def say(self, text: str) -> None:
        """A line above the bar."""
        self._bar.console.print(f"{self._clock()} {text}", markup=False)

    def _follow(self) -> None:
        while not self._stop.wait(0.5):
            self._read()
        self._read()

    def _read(self) -> None:
        try:
            events = self._since(self._seen)
        except Exception as error:
            # The board lives on the cluster; when that is gone, the job's own error tells why.
            self.say(f"progress: no longer available ({type(error).__name__})")
            self._stop.set()
            return
        self._seen += len(events)
        for event in events:
            if event.state == "started":
                continue
            self._ended += 1
            self._bar.update(self._task, advance=1)
            detail = f": {event.detail}" if event.detail else ""
            if event.state != "reused":
                self.say(
                    f"{self._ended}/{self._total} {event.state} {event.seconds:5.1f} s  {event.label}{detail}"
                )

    def _clock(self) -> str:
        seconds = int(time.monotonic() - self._started)
        return f"[{seconds // 60:02d}:{seconds % 60:02d}]"


def say(text: str) -> None:
    """One line of a job's output, as it is."""
    console.print(text, markup=False)


def verdict(card: dict[str, Any]) -> Table:
    """A scorecard: each malicious concept, then each probe of what must survive."""
    table = Table(title="verdict", title_justify="left")
    for name in ("what", "score", "detail"):
        table.add_column(name, justify="right" if name == "score" else "left")
    for name, concept in card["concepts"].items():
        step = concept["steps_to_recovery"]
        detail = (
            f"relearnt by step {step}" if step is not None else "not relearnt within the attack"
        )
        detail += f", mean recovery {concept['mean_recovery']:.3f}"
        table.add_row(f"resistance: {name}", f"{concept['resistance']:.3f}", detail)
    for name, value in card["probes"].items():
        table.add_row(f"retention: {name}", f"{value:.3f}", "")
    table.add_row("retention", f"{card['retention']:.3f}", f"worst {card['worst_retention']:.3f}")
    return table


def leaderboard(rows: Sequence[dict[str, Any]], searched: Sequence[str]) -> Table:
    """Every trial's models, each model's best first: the objective, both coordinates, the settings.

    A trial that did not come to its end has no model; what it could still become stands at the end, with
    the reason.
    """
    table = Table(title="leaderboard", title_justify="left")
    for name in (
        "model",
        "trial",
        *VERDICT,
        *(path.rpartition(".")[2] for path in searched),
        "note",
    ):
        left = name in ("model", "trial", "note")
        table.add_column(name, justify="left" if left else "right", overflow="fold")
    models = [(row, model) for row in rows for model in row["arms"]]
    for row, model in sorted(
        models,
        key=lambda pair: (pair[1]["malicious"], -pair[1]["objective"], -pair[1]["retention"]),
    ):
        numbers = [f"{model[name]:.3f}" for name in VERDICT]
        settings = [_short(row["values"].get(name, "")) for name in searched]
        table.add_row(model["malicious"], row["trial_id"], *numbers, *settings, model["reason"])
    for row in rows:
        if not row["arms"]:
            still = [f"≤ {row[name]:.3f}" if row["state"] != "failed" else "" for name in VERDICT]
            settings = [_short(row["values"].get(name, "")) for name in searched]
            table.add_row("", row["trial_id"], *still, *settings, row["reason"])
    return table


def _short(value: Any) -> str:
    return f"{value:.2e}" if isinstance(value, float) else str(value)
