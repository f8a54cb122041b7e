"""`gift-ray export` as a script, for `ray job submit`: see gift_ray/jobs/export.py."""

import sys

from gift_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["export", *sys.argv[1:]]))
