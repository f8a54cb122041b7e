"""The kinds of steps: one file for each, with one class that holds its arguments and does its work."""
