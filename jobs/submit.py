"""Submit a job to Ray: to the cluster of $RAY_ADDRESS, with this folder, else to a local head started for it.

python jobs/submit.py jobs/sweep.py configs/demo.yaml [key=value ...]
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from gift_ray.cluster.local import joins_running_cluster, local_head, submit
from gift_ray.errors import GiftError


def main(entrypoint: list[str]) -> int:
    if not entrypoint:
        print(__doc__)
        return 2
    # A terminated submission must end the head that it started, as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with local_head() as environment:
            return submit(entrypoint, environment, Path.cwd() if joins_running_cluster() else None)
    except GiftError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
