"""`gift-ray attack` as a script, for `ray job submit`: see gift_ray/cli/attack.py."""

import sys

from gift_ray.cli.command import main

if __name__ == "__main__":
    sys.exit(main(["attack", *sys.argv[1:]]))
