"""Who may use our clusters, and what they tell of secrets."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest

from gift_ray.cluster.local import local_head, submit
from gift_ray.cluster.session import require_closed
from gift_ray.errors import ConfigError


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_head_of_our_own_is_closed_and_tells_no_secrets(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "s3cret-of-mlflow")
    with local_head() as environment:
        dashboard = environment["RAY_API_SERVER_ADDRESS"]
        for question in ("/api/jobs/", "/nodes?view=summary", "/api/version"):
            with pytest.raises(urllib.error.HTTPError, match="401"):
                urllib.request.urlopen(dashboard + question, timeout=30)
        # It says of itself that it asks for a token: no job refuses to join it.
        require_closed(["10.0.0.5"], dashboard.removeprefix("http://"))
        job, ran = tmp_path / "job.py", tmp_path / "ran"
        job.write_text(f"import ray; ray.init(); open({str(ran)!r}, 'w').write('yes')")
        assert submit([str(job)], environment, None) == 0
        assert ran.read_text() == "yes"

        processes = psutil.Process().children(recursive=True)
        listening = {
            connection.laddr.ip
            for process in processes
            for connection in process.net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN
            and connection.laddr.port == int(dashboard.rpartition(":")[2])
        }
        assert listening == {"127.0.0.1"}
        lines = " ".join(" ".join(process.cmdline()) for process in processes)
        (session,) = set(re.findall(r"--session-dir=(\S+)", lines))
        secrets = (environment["RAY_AUTH_TOKEN"], "s3cret-of-mlflow")
        for log in (Path(session) / "logs").rglob("*"):
            if log.is_file():
                content = log.read_text(errors="replace")
                assert not [s for s in secrets if s in content], f"{log} tells a secret"
        assert not [s for s in secrets if s in lines]


JOIN = """
import sys
from pathlib import Path
from gift_ray.cli.console import run_job
from gift_ray.cluster.session import session
from gift_ray.config.running import ClusterConfig

def job(arguments):
    with session(ClusterConfig(), Path(sys.argv[1])):
        return 0

sys.exit(run_job(job, None))
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("token", "code", "said"), [("right", 0, ""), ("wrong", 2, "does not let this job in")]
)
def test_a_job_with_the_wrong_token_ends_in_one_line(
    token: str, code: int, said: str, tmp_path: Path
) -> None:
    start = (
        "import sys, time; from nodes import start_cluster\n"
        "with start_cluster(num_cpus=1) as c: print(c.address, flush=True); sys.stdin.read()"
    )
    secret = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}
    tests = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}
    head = subprocess.Popen(
        [sys.executable, "-c", start], env={**os.environ, **secret, **tests}, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert head.stdout is not None
        address = head.stdout.readline().strip()
        given = secret | ({} if token == "right" else {"RAY_AUTH_TOKEN": "1" * 64})
        joined = subprocess.run(
            [sys.executable, "-c", JOIN, str(tmp_path / "study")], check=False, text=True,
            env={**os.environ, **given, **tests, "RAY_ADDRESS": address}, capture_output=True,
        )  # fmt: skip
    finally:
        head.communicate("")
    assert joined.returncode == code, joined.stderr
    lines = [line for line in joined.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == int(code != 0), joined.stderr
    assert all(said in line for line in lines), lines
    assert "Traceback" not in joined.stderr


def test_an_open_cluster_that_others_reach_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    with pytest.raises(
        ConfigError, match=r"10\.0\.0\.5 asks nobody for a token.*RAY_AUTH_MODE=token"
    ):
        require_closed(["127.0.0.1", "10.0.0.5"], None)
    # Nobody else reaches it; or somebody said that this is meant.
    require_closed(["127.0.0.1"], None)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    require_closed(["10.0.0.5"], None)
