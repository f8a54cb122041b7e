"""The built-in miniature Stable Diffusion and its judges, made by `tools/rebuild_builtin.py`."""

from pathlib import Path

BUNDLE = Path(__file__).parent
# The classifier's label of pictures that show nothing that has a name.
NOTHING = "nothing"
