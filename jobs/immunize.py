"""`gift-ray immunize` as a script, for `ray job submit`: see gift_ray/cli/immunize.py."""

import sys

from gift_ray.cli.command import main

if __name__ == "__main__":
    sys.exit(main(["immunize", *sys.argv[1:]]))
