"""`gift-ray sweep` as a script, for `ray job submit`: see gift_ray/cli/sweep.py."""

import sys

from gift_ray.cli.command import main

if __name__ == "__main__":
    sys.exit(main(["sweep", *sys.argv[1:]]))
