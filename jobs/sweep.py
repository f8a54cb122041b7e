"""`gift-ray sweep` as a script, for `ray job submit`: see gift_ray/jobs/sweep.py."""

import sys

from gift_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["sweep", *sys.argv[1:]]))
