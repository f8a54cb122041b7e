"""Prepares images for training: reads, hashes, splits and encodes them."""
