"""Memory of GIFT's full training of Stable Diffusion 1.5, at batch 1 and with random weights of its shape.

    python benchmarks/sd15_memory.py [--pixels 512] [--tiny]

One inner step, one outer step and a checkpoint; then another process continues from it with one more inner
step. For each it prints the seconds, and the most memory that the process had at any time during it: `own` is
memory of its own, without the pages of files that it reads, which the system takes back when it needs them.
Linux only.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from shapes import backbone, examples

from gift_ray.plugins import build
from gift_ray.records.record import load_state, save_state
from gift_ray.training.diffusion import Seeds
from gift_ray.training.loop import train

GIB = 2**30
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def memory(name: str) -> int:
    """A line of this process's status in bytes: VmHWM is the most it had, RssAnon what is its own now."""
    (line,) = [line for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:")]
    return int(line.split()[1]) * 1024


@contextmanager
def told(title: str) -> Iterator[None]:
    """Print what the block took."""
    own, over = [memory("RssAnon")], threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            own.append(memory("RssAnon"))

    # The most memory so far is forgotten.
    CLEAR.write_text("5")
    watcher, started = threading.Thread(target=watch), time.perf_counter()
    watcher.start()
    yield
    over.set()
    watcher.join()
    own.append(memory("RssAnon"))
    print(
        f"{title:<28} {time.perf_counter() - started:7.1f} s   at most {memory('VmHWM') / GIB:5.2f} GiB, "
        f"own {max(own) / GIB:5.2f}, left {own[-1] / GIB:5.2f}",
        flush=True,
    )


class OneFile:
    """A report with a checkpoint after each step, as a study's journal keeps it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def log(self, step: int, **values: float) -> None:
        pass

    def due(self, step: int) -> bool:
        return True

    def save(self, step: int, state: dict[str, Any]) -> None:
        with told("a checkpoint"):
            save_state(self.path, state)
        print(f"{'':<28} {self.path.stat().st_size / GIB:.2f} GiB on disk")

    def load(self) -> dict[str, Any] | None:
        return load_state(self.path) if self.path.exists() else None


def work(path: Path, pixels: int, tiny: bool) -> None:
    """Begin the training, or continue it where there is a checkpoint."""
    torch.manual_seed(0)
    resumes = path.exists()
    size = {} if tiny else {"resolution": pixels}
    with told("the base's weights"):
        # Weights of 4 bytes; gradient checkpointing as model.preset sets it.
        model = backbone("sd15", torch.device("cpu"), tiny=tiny, mixed_precision="no", **size)
        model.denoiser.enable_gradient_checkpointing()
    d_m, d_s = (examples("sd15", model, 1, seed, tiny=tiny) for seed in (1, 2))
    gift: Any = build("defenses", "gift", {"max_train_steps": 4})
    with told("begun: a copy to train"):
        run = gift.begun(model, [d_m], d_s, Seeds(0))

    def step(index: int) -> Mapping[str, Any]:
        with told("an inner step"):
            gradients, values = run.inner_gradients(index)
            run.inner.step(gradients)
            del gradients
        if not resumes:
            with told("an outer step"):
                gradients, more = run.outer_gradients(index, index)
                run.outer.step(gradients)
                values |= more
        return values

    levels = {"inner": run.inner, "outer": run.outer}
    report: Any = OneFile(path)
    if resumes:
        load = report.load
        report.due = lambda step: False

        def loaded() -> Any:
            with told("the checkpoint is read"):
                return load()

        report.load = loaded
    train(step, 2 if resumes else 1, levels, report, advice="")
    state = sum(
        value.nbytes
        for level in levels.values()
        for kept in level.optimizer.state.values()
        for value in kept.values()
    )
    weights = sum(p.nbytes for p in run.inner.parameters.values())
    print(f"weights {weights / GIB:.2f} GiB, the optimizers' state {state / GIB:.2f} GiB")


def main(pixels: int, tiny: bool, path: Path | None) -> None:
    if path is not None:
        work(path, pixels, tiny)
        return
    with tempfile.TemporaryDirectory() as scratch:
        options = ["--pixels", str(pixels), "--path", str(Path(scratch) / "state.safetensors")]
        for title in ("begun", "continued in another process"):
            print(f"-- {title}", flush=True)
            subprocess.run([sys.executable, __file__, *options, *["--tiny"] * tiny], check=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--pixels", type=int, default=512)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--path", type=Path, help=argparse.SUPPRESS)
    main(**vars(parser.parse_args()))
