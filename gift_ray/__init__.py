"""gift-ray: immunize text-to-image diffusion models against malicious fine-tuning, and prove it."""

__version__ = "0.1.0"
