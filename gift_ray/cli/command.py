"""The `gift-ray` command: runs the jobs of a study, and shows what they found and what is registered.

Completion in bash or zsh: `eval "$(register-python-argcomplete gift-ray)"`. Nothing heavy is imported before
a command runs, so that the tab key is answered at once.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any, get_origin

import argcomplete
from argcomplete.completers import DirectoriesCompleter, FilesCompleter

from gift_ray.cli.console import job_arguments, run_job

COMMANDS = {
    "init": "write a first study: a model, what it is to resist, what must stay learnable",
    "check": "can the judges read, do the controls hold, what will the bounds be",
    "sweep": "search a study's options, confirm the best, register what passes the gate",
    "immunize": "immunize with one setting, attack the result, say what it is worth",
    "benchmark": "every defense of a study under every attack: tables and curves",
    "attack": "attack anyone's checkpoint and score it",
    "export": "take a model out of a study, or the adapter that an attacker makes of it",
    "report": "write a study's report anew from its records",
    "models": "what is registered: versions, scores, aliases",
    "show": "what a study found: its trials, its verdicts",
}
# A command is run by the module of its name in this folder, except for these.
MODULES = {"models": "registered", "report": "rewrite_report"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    parser, commands = _parser()
    argcomplete.autocomplete(parser)
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] not in commands:
        parser.parse_args(given or ["--help"])
    # Options between overrides are possible only if the command is parsed by its own parser.
    parsed = commands[given[0]].parse_intermixed_args(given[1:])
    job = importlib.import_module(f"gift_ray.cli.{MODULES.get(given[0], given[0])}")
    return run_job(job.main, parsed)


def _parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    parser = argparse.ArgumentParser(prog="gift-ray", description=(__doc__ or "").split("\n\n")[0])
    subparsers = parser.add_subparsers(metavar="COMMAND")
    commands = {
        name: subparsers.add_parser(name, help=h, description=h) for name, h in COMMANDS.items()
    }
    for name in ("check", "sweep", "immunize", "benchmark", "attack", "export"):
        config, overrides = job_arguments(commands[name], runs=name != "export")
        _complete(config, FilesCompleter(("yaml", "yml")))
        _complete(overrides, lambda **_: list(_overrides()))
    commands["attack"].add_argument("--model", required=True, help="the checkpoint to attack")
    commands["attack"].add_argument("--variant", help="of a folder's weights, as fp16")
    commands["immunize"].add_argument(
        "--matrix", action="store_true", help="attack every model with every malicious concept"
    )
    commands["check"].add_argument(
        "--judges", action="store_true", help="the judges' check alone, which trains nothing"
    )
    commands["check"].add_argument(
        "--damage",
        type=float,
        default=0.05,
        help="of the damaged model, in deviations of its weights",
    )
    _add_export(commands["export"])
    _add_init(commands["init"])
    for name in ("report", "show"):
        study = commands[name].add_argument("study", help="a study's folder, as runs/demo")
        _complete(study, DirectoriesCompleter())
    commands["report"].add_argument(
        "--images", choices=("all", "safe_only", "none"), help="default: the study's report.images"
    )
    commands["models"].add_argument(
        "--tracking-uri", help="default: $MLFLOW_TRACKING_URI, else every runs/*/mlflow.db"
    )
    return parser, commands


def _add_export(export: argparse.ArgumentParser) -> None:
    export.add_argument(
        "--concept", required=True, help="the malicious concept whose model is meant"
    )
    export.add_argument("--form", required=True, choices=("diffusers", "delta", "lora", "kohya"))
    export.add_argument("--to", required=True, help="the file or folder to write")
    export.add_argument("--attack", default="lora", help="whose adapter (lora, kohya)")
    export.add_argument("--seed", type=int, default=0, help="of the attack (lora, kohya)")


def _add_init(init: argparse.ArgumentParser) -> None:
    init.add_argument("--model", action="append", help="builtin, a diffusers folder or a hub id")
    for name, what in (("malicious", "is to be resisted"), ("safe", "must stay learnable")):
        init.add_argument(
            f"--{name}", nargs="+", action="extend", metavar="DIR|WORDS",
            help=f"what {what}: a folder of images, or words for what the model can draw",
        )  # fmt: skip
    init.add_argument("--to", default="study.yaml", help="the file to write (default: %(default)s)")
    init.add_argument(
        "--encoders", choices=("builtin", "hub"), default=None,
        help="of the judges; default: those that suit the model",
    )  # fmt: skip


def _complete(action: argparse.Action, completer: Any) -> None:
    action.completer = completer  # type: ignore[attr-defined]


def _overrides() -> Iterator[str]:
    """The dotted paths of a study's configuration, as overrides to be filled in."""
    from gift_ray.config.mistakes import part_of
    from gift_ray.config.schema import StudyConfig

    def below(model: Any, prefix: str) -> Iterator[str]:
        for name, field in model.model_fields.items():
            listed = get_origin(field.annotation) in (tuple, dict)
            part = None if listed else part_of(field.annotation)
            if part is None:
                yield f"{prefix}{name}="
            else:
                yield from below(part, f"{prefix}{name}.")

    return below(StudyConfig, "")


if __name__ == "__main__":
    sys.exit(main())
