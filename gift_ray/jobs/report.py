"""Write a study's report anew from its records: one offline HTML page, and figures and tables for papers.

    gift-ray report runs/demo [--images none]

A study that is still running, or was stopped, has a report too; it says what is missing.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from gift_ray import console
from gift_ray.report.page import write_report


def main(arguments: argparse.Namespace) -> int:
    page = write_report(Path(arguments.study), arguments.images)
    console.console.print(f"report       {page}", markup=False)
    return console.OK
