"""Models: loading, copying, encoding, drawing and saving them."""
