"""How the built-in miniature Stable Diffusion and its judges are made; see rebuild_builtin.py."""
