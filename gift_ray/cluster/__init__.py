"""Running plans on Ray, and searching with Ray Tune. The only package that imports ray."""
