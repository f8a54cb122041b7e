"""`gift-ray export` as a script, for `ray job submit`: see gift_ray/cli/export.py."""

import sys

from gift_ray.cli.command import main

if __name__ == "__main__":
    sys.exit(main(["export", *sys.argv[1:]]))
