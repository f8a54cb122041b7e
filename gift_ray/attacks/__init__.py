"""How an attacker fine-tunes; one attack a file."""
