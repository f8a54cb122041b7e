"""Turns a study into steps: checks it, plans it, and runs the steps."""
