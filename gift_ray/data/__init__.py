"""Images on their way to training: reading, hashing, splitting, encoding."""
