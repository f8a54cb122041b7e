"""How a model is immunized; one defense a file."""
