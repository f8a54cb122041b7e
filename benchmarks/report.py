"""How a large study's report fares: time to build, size, time until its controls work, time of a control.

    python benchmarks/report.py [trials]

A synthetic study of (by default) some 10,000 curve points and 2,000 images, written as a job writes it,
opened from disk in headless Chromium. Beside the wall clock stands the time that the page's main thread
was on a processor, which other work on the machine does not change.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import CDPSession, Page, sync_playwright

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "report"))
from studies import Builder, Recipe

from gift_ray.report.collect import collect
from gift_ray.report.curves import averaged
from gift_ray.report.page import write_report

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
CONTROLS = {
    "another metric": "document.querySelectorAll('[data-field=metric] option')[1].selected = true; "
    "document.querySelector('[data-field=metric]').dispatchEvent(new Event('change'))",
    "ten more models": "[...document.querySelectorAll('[data-group]:not(:checked)')].slice(0, 10)"
    ".forEach(box => box.click())",
    "another attack step": "document.getElementById('step').value = 0; "
    "document.getElementById('step').dispatchEvent(new Event('input'))",
    "dark mode": "document.getElementById('theme').click()",
}


class Pictures(Builder):
    """Drawings compress as attacked images do; noise would not."""

    def _png(self) -> bytes:
        y, x = np.mgrid[0:64, 0:64] / 64
        waves = [np.sin(4 * (x * a + y * b)) for a, b in self.random.uniform(-2, 2, (3, 2))]
        content = io.BytesIO()
        Image.fromarray(np.uint8(127 + 120 * np.stack(waves, -1))).save(content, "PNG")
        return content.getvalue()


def main(trials: int) -> None:
    recipe = Recipe(steps=tuple(range(42)), seeds=(0,), trials=trials, ended=trials, labels=True)
    with tempfile.TemporaryDirectory() as folder:
        study = Pictures(Path(folder) / "study", recipe).build()
        print(f"curve points         {len(averaged(collect(study).curves))}")
        started, busy = time.perf_counter(), time.process_time()
        page = write_report(study)
        say("built", time.perf_counter() - started, time.process_time() - busy)
        print(f"page                 {page.stat().st_size / 2**20:.1f} MiB")
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            opened = browser.new_context(offline=True).new_page()
            opened.set_default_timeout(300_000)
            look(opened, page)
            browser.close()


def look(opened: Page, page: Path) -> None:
    """Open the page and use each control once."""
    clock = opened.context.new_cdp_session(opened)
    clock.send("Performance.enable", {"timeDomain": "threadTicks"})
    started = time.perf_counter()
    opened.goto(page.as_uri())
    opened.wait_for_selector("html[data-ready]", state="attached")
    say("until it is usable", time.perf_counter() - started, on_thread(clock))
    count = "Object.values(data.images).flat().reduce((n, [, , uris]) => n + uris.length, 0)"
    print(f"images               {opened.evaluate(count)}")
    for name, script in CONTROLS.items():
        started, busy = time.perf_counter(), on_thread(clock)
        opened.evaluate(script)
        opened.evaluate(
            "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
        )
        say(name, time.perf_counter() - started, on_thread(clock) - busy)


def say(what: str, wall: float, busy: float) -> None:
    """One line of the table."""
    print(f"{what:20} {wall:6.2f} s wall {busy:6.2f} s on its processor", flush=True)


def on_thread(clock: CDPSession) -> float:
    """Seconds that the page's main thread was busy so far."""
    metrics = clock.send("Performance.getMetrics")["metrics"]
    return next(m["value"] for m in metrics if m["name"] == "TaskDuration")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
