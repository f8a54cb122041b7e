"""gift-ray: immunize text-to-image diffusion models against malicious fine-tuning, and prove it."""

import os

# Before anything imports transformers: it warns of optional packages that nothing here uses.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

__version__ = "0.1.0"
