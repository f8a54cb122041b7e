"""What finished work leaves on disk, and how it gets there whole."""
