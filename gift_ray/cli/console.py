"""Prints what a job shows (one line for each error, live progress, the leaderboard); its exit codes."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, ClassVar

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from gift_ray import logs
from gift_ray.errors import GiftError

logger = logging.getLogger(__name__)

OK, FAILED, INTERRUPTED = 0, 1, 130
VERDICT = ("objective", "resistance", "retention")
# A pipe has no width; this is enough for a row of the leaderboard.
console = Console(width=None if sys.stdout.isatty() else 150, soft_wrap=True, highlight=False)


def job_arguments(
    parser: argparse.ArgumentParser, *, runs: bool = True
) -> tuple[argparse.Action, argparse.Action]:
    """Add the arguments that every job on a study takes; returns those of the study and its overrides.

    Args:
        parser: the job's parser.
        runs: whether the job runs units of the study.
    """
    config = parser.add_argument("config", help="a study, as configs/demo.yaml")
    overrides = parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="dotted overrides, as defense.beta=0.3"
    )
    if runs:
        parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
        parser.add_argument(
            "--verbose",
            action="store_true",
            help="show the log, which is always in the study's folder, on standard error too",
        )
        parser.add_argument(
            "--progress", choices=("text", "json"), default="text",
            help="json: one JSON object an event on standard output, all else on standard error",
        )  # fmt: skip
    return config, overrides


def run_job(main: Callable[[argparse.Namespace], int], arguments: argparse.Namespace) -> int:
    """Run a job and return its exit code. Errors that the user can act on are printed without a traceback."""
    if getattr(arguments, "progress", "text") == "json":
        console.stderr = LiveProgress.as_json = True
    if getattr(arguments, "verbose", False):
        logs.to_stderr()
    try:
        return main(arguments)
    except GiftError as error:
        for line in error.mistakes:
            print(f"error: {' '.join(line.split())}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted; the same command continues", file=sys.stderr)
        return INTERRUPTED


@dataclass
class Tally:
    """How many units are running, waiting and done, counted from a board's events.

    A unit that is asked for again, as the judges' check is by the study after it, counts once.
    """

    total: int
    started: float
    now: float
    over: set[str] = field(default_factory=set)
    computed: int = 0
    running: int = 0
    best: dict[str, tuple[float, str]] = field(default_factory=dict)

    def count(self, event: Any) -> None:
        """Count one event of the board."""
        if event.state == "started":
            self.running += 1
            return
        self.running -= 1
        self.over.add(event.step)
        self.computed += event.state != "reused"

    @property
    def ended(self) -> int:
        """How many units have come to an end."""
        return len(self.over)

    @property
    def waiting(self) -> int:
        """How many units have not begun."""
        return max(0, self.total - self.ended - self.running)

    @property
    def per_minute(self) -> float | None:
        """Units computed per minute; None before the first."""
        minutes = (self.now - self.started) / 60
        return self.computed / minutes if self.computed and minutes > 0 else None

    @property
    def seconds_left(self) -> float | None:
        """Estimated from the units computed so far; None before the first."""
        left = self.running + self.waiting
        return 60 * left / self.per_minute if self.per_minute else None

    def __str__(self) -> str:
        said = [f"{self.running} running", f"{self.waiting} waiting"]
        if self.per_minute is not None and self.seconds_left is not None:
            said += [f"{self.per_minute:.1f} a minute", f"{_duration(self.seconds_left)} left"]
        said += [f"best {name} {value:.3f} ({who})" for name, (value, who) in self.best.items()]
        return ", ".join(said)


class LiveProgress:
    """Shows the events of a board while a block runs: a line for each unit, and a bar on a terminal.

    With `as_json` (`--progress json`) standard output holds nothing but a JSON object for each event;
    what people read goes to standard error.

    Args:
        since: a function that gives the board's events after the first n.
        total: the number of units that are expected; a search may end with fewer.
    """

    as_json: ClassVar[bool] = False

    def __init__(self, since: Callable[[int], list[Any]], total: int) -> None:
        self._since = since
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("{task.fields[tally]}", markup=False),
            console=console, disable=self.as_json or not console.is_terminal,
        )  # fmt: skip
        now = time.monotonic()
        self._seen, self._tally = 0, Tally(total, started=now, now=now)

    def __enter__(self) -> LiveProgress:
        self._bar.start()
        self._task = self._bar.add_task("units", total=self._tally.total, tally="")
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
        """Print a line above the bar."""
        self._bar.console.print(f"{self._clock()} {text}", markup=False)

    def scored(self, model: str, objective: float, who: str) -> None:
        """Note the score of a model; the best one of each is shown."""
        best = self._tally.best
        if model not in best or objective > best[model][0]:
            best[model] = (objective, who)

    def _follow(self) -> None:
        while not self._stop.wait(0.5):
            self._read()
        self._read()

    def _read(self) -> None:
        try:
            events = self._since(self._seen)
        except Exception as error:  # noqa: BLE001 (Ray's own errors, which this folder does not know)
            # The board is on the cluster. When that is gone, the job itself ends with an error that says why.
            self.say(f"progress: no longer available ({type(error).__name__})")
            self._stop.set()
            return
        self._seen += len(events)
        self._tally.now = time.monotonic()
        for event in events:
            self._tally.count(event)
            (self._as_json if self.as_json else self._as_line)(event)
        self._bar.update(self._task, completed=self._tally.ended, tally=str(self._tally))

    def _as_line(self, event: Any) -> None:
        if event.state in ("started", "reused"):
            return
        detail = f": {event.detail}" if event.detail else ""
        # On a terminal the bar shows these numbers.
        tally = "" if console.is_terminal else f"  ({self._tally})"
        count = f"{self._tally.ended}/{self._tally.total}"
        self.say(f"{count} {event.state} {event.seconds:5.1f} s  {event.label}{detail}{tally}")

    def _as_json(self, event: Any) -> None:
        tally = self._tally
        line = {
            "time": time.time(), "state": event.state, "unit": event.label, "kind": event.kind,
            "seconds": round(event.seconds, 3), "detail": event.detail,
            "ended": tally.ended, "running": tally.running, "waiting": tally.waiting,
            "total": tally.total, "per_minute": tally.per_minute, "seconds_left": tally.seconds_left,
            "best": {name: {"objective": v, "by": who} for name, (v, who) in tally.best.items()},
        }  # fmt: skip
        print(json.dumps(line), flush=True)

    def _clock(self) -> str:
        return f"[{_duration(time.monotonic() - self._tally.started)}]"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes:02d}:{rest:02d}"


def say(text: str) -> None:
    """Print one line of a job's output, and write it to the log."""
    logger.info(text)
    console.print(text, markup=False)


def verdict(card: dict[str, Any]) -> Table:
    """A scorecard as a table: each malicious concept, then each retention group."""
    table = Table(title="verdict", title_justify="left")
    for name in ("what", "estimate", "bounds", "detail"):
        table.add_column(name, justify="right" if name in ("estimate", "bounds") else "left")
    for name, concept in card["concepts"].items():
        step = concept["steps_to_recovery"]
        detail = f"{concept['verdict']}; {concept['worst']}; "
        detail += f"relearnt by step {step}" if step is not None else "not relearnt"
        if concept["needed"]:
            images, seeds = concept["needed"]["images"], concept["needed"]["seeds"]
            detail += f"; {images} images at each step of {seeds} "
            detail += f"seed{'s' if seeds > 1 else ''} would settle it"
        table.add_row(f"recovery: {name}", *_bounds(concept["recovery"]), detail)
    for name, group in card["groups"].items():
        table.add_row(f"retention: {name}", *_bounds(group), "")
    kept = {"mean": card["retention"], "low": card["retention_low"], "high": None}
    table.add_row("retention", *_bounds(kept), f"worst group {card['worst_retention']:.3f}")
    return table


def _bounds(found: Mapping[str, Any]) -> tuple[str, str]:
    high = "" if found["high"] is None else f" to {found['high']:.3f}"
    return f"{found['mean']:.3f}", f"{found['low']:.3f}{high}"


def table(title: str, rows: Sequence[Mapping[str, str]]) -> Table:
    """A table of rows that have the same keys, which name the columns."""
    found = Table(title=title, title_justify="left")
    for name in rows[0] if rows else ("nothing",):
        found.add_column(name, overflow="fold")
    for row in rows:
        found.add_row(*(escape(value) for value in row.values()))
    return found


def leaderboard(rows: Sequence[dict[str, Any]], searched: Sequence[str]) -> Table:
    """The models of all trials, the best first: objective, resistance, retention and the searched settings.

    A trial that ended early has no verdict. Such trials follow at the end, with the best values that were
    still possible and the reason why they ended.
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
        table.add_row(
            ", ".join(model["malicious"]), row["trial_id"], *numbers, *settings, model["reason"]
        )
    for row in rows:
        if not row["arms"]:
            still = [f"≤ {row[name]:.3f}" if row["state"] != "failed" else "" for name in VERDICT]
            settings = [_short(row["values"].get(name, "")) for name in searched]
            table.add_row("", row["trial_id"], *still, *settings, row["reason"])
    return table


def _short(value: Any) -> str:
    return f"{value:.2e}" if isinstance(value, float) else str(value)
