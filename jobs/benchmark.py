"""`gift-ray benchmark` as a script, for `ray job submit`: see gift_ray/cli/benchmark.py."""

import sys

from gift_ray.cli.command import main

if __name__ == "__main__":
    sys.exit(main(["benchmark", *sys.argv[1:]]))
