"""From records to what people look at. Reads the study's folder only."""

THREAT_MODEL = (
    "The attacker holds the released weights and images of the concept, fine-tunes as they like, and "
    "never sees the original weights. Whoever holds the original weights is not stopped, and "
    "text-free inversion is not covered."
)
