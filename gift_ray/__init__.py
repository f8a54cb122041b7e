"""gift-ray: immunize text-to-image diffusion models against malicious fine-tuning, and prove it."""

import os

# Before anything imports transformers: it warns of optional packages that nothing here uses.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

__version__ = "0.1.0"

# What is claimed, and what is not: printed in every report and on every released model's card.
THREAT_MODEL = (
    "The attacker holds the released weights and images of the concept, fine-tunes as they like, and "
    "never sees the original weights. Whoever holds the original weights is not stopped, and "
    "text-free inversion is not covered."
)
