"""`gift-ray report` as a script, for `ray job submit`: see gift_ray/cli/rewrite_report.py."""

import sys

from gift_ray.cli.command import main

if __name__ == "__main__":
    sys.exit(main(["report", *sys.argv[1:]]))
