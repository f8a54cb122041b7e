"""MLflow: runs, curves, artifacts, the registry. The only package that imports mlflow."""
