"""L_noise in a real unet: does the paper's target (the sample's own mean and variance) remove what an
activation says, or only its scale? Prints the std ratio and the correlation to the base's activations
along an immunization with each `noise_target`, L_noise alone and with L_max.

    python benchmarks/noise_target.py configs/demo.yaml [steps]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import pandas as pd

from gift_ray.study.execute import execute
from gift_ray.study.load import configure, load_study
from gift_ray.study.plan import plan

COLUMNS = ["L_prior", "mse_malicious", "L_noise", "std_ratio", "correlation"]
VARIANTS = {
    "sample": {"defense.noise_target": "sample"},
    "frozen": {"defense.noise_target": "frozen"},
    "sample, L_noise alone": {"defense.noise_target": "sample", "defense.max_weight": 0},
    "frozen, L_noise alone": {"defense.noise_target": "frozen", "defense.max_weight": 0},
}


def main(path: str, steps: int) -> None:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        config = load_study(path, [f"output_dir={folder}"])
        for name, options in VARIANTS.items():
            # The rates of the demo's best trial.
            fixed = {
                "defense.alpha_inner": 1.83e-4,
                "defense.alpha_outer": 5.39e-4,
                "defense.max_train_steps": steps,
                "defense.max_loss": "hinge",
                "defense.beta": 0.147,
            }
            layout = plan(configure(config, fixed | options))
            arm = layout.defended[0]
            for step in [*arm.immunize.inputs.values(), arm.immunize]:
                execute(step, Path(folder))
            log = pd.read_parquet(arm.immunize.folder(Path(folder)) / "training.parquet")
            for at in (0, len(log) // 2, len(log) - 1):
                rows.append({"noise_target": name, "round": at, **log[COLUMNS].iloc[at].round(3)})
    print(pd.DataFrame(rows).to_string(index=False))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 200)
