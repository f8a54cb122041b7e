"""The `gift-ray` command: what users run, one file a job."""
