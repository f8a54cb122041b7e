"""The built-in miniature Stable Diffusion, made by `jobs/pretrain_builtin.py`."""

from pathlib import Path

BUNDLE = Path(__file__).parent
