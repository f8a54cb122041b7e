"""Who may use our clusters, and what they tell of secrets."""

from __future__ import annotations

import re
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
