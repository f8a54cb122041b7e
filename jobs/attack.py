"""`gift-ray attack` as a script, for `ray job submit`: see gift_ray/jobs/attack.py."""

import sys

from gift_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["attack", *sys.argv[1:]]))
