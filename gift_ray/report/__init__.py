"""From records to what people look at. Reads the study's folder only."""
