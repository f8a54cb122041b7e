"""Write a study's report anew from its records: one offline HTML page, and figures and tables for papers.

    gift-ray report runs/demo [--images none]

A study that is still running, or was stopped, has a report too, which says what is missing. The reports of
its benchmark and of attacked checkpoints are written as well; they lie in folders of their own.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from gift_ray.cli import console
from gift_ray.report.page import write_report


def main(arguments: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    study = Path(arguments.study)
    inside = [path.parent for path in sorted(study.glob("*/study.json"))]
    folders = [study, *inside] if (study / "study.json").exists() or not inside else inside
    for folder in folders:
        console.say(f"report       {write_report(folder, arguments.images)}")
    return console.OK
