"""What the product does, job by job: parse, plan, run, say what happened. Each is a command of gift-ray."""
