"""The same study on a cluster of one node and on one of two: every file of every step must be the same.

    python benchmarks/two_nodes.py configs/demo.yaml [key=value ...]

Both clusters are of this machine: a head without units, and nodes of two cores in all. The study runs as
a user would run it, `RAY_ADDRESS=... python jobs/sweep.py`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ray.cluster_utils import Cluster

from gift_ray.cluster import start_with
from gift_ray.study.load import load_study

ROOT = Path(__file__).parents[1]


def main(config: str, overrides: list[str]) -> int:
    # These clusters are of this machine alone.
    os.environ["RAY_AUTH_MODE"] = "disabled"
    start_with(os.environ)
    with tempfile.TemporaryDirectory() as folder:
        left = [run(config, [*overrides, f"output_dir={folder}/{n}"], n) for n in (1, 2)]
    one, two = left
    different = [name for name in one if one[name] != two.get(name)]
    print(
        f"{len(one)} steps on one node, {len(two)} on two; {len(different)} different {different}"
    )
    return bool(different) or one.keys() != two.keys()


def run(config: str, overrides: list[str], nodes: int) -> dict[str, dict[str, str]]:
    """Sweep on so many nodes; returns step -> file -> hash."""
    head = {"num_cpus": 0, "dashboard_port": None}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(nodes):
            cluster.add_node(num_cpus=2 // nodes)
        started = time.perf_counter()
        subprocess.run(
            [sys.executable, "jobs/sweep.py", config, *overrides], cwd=ROOT, check=True,
            env={**os.environ, "RAY_ADDRESS": cluster.address}, stdout=sys.stderr,
        )  # fmt: skip
        print(
            f"{nodes} node(s): {time.perf_counter() - started:.0f} s; load {os.getloadavg()[0]:.1f}"
        )
    finally:
        cluster.shutdown()
    study_dir = load_study(config, overrides).study_dir
    summary = json.loads((study_dir / "summary.json").read_text())
    for model in summary["chosen"]:
        print(f"{nodes} node(s): {', '.join(model['malicious'])}: " + ", ".join(
            f"{name} {model[name]!r}" for name in ("objective", "resistance", "retention")
        ))  # fmt: skip
    records = (json.loads(p.read_text()) for p in (study_dir / "steps").glob("*/record.json"))
    return {f"{r['kind']}-{r['fingerprint'][:16]}": r["files"] for r in records}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
