"""A study's configuration: its schema, how it is read, and its mistakes in words."""
