"""A study as steps: planned, checked before a run, carried out."""
