"""The mathematics and the loop of diffusion training; no model is loaded here."""
