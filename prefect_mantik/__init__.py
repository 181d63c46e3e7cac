"""Train machine-learning models on supercomputers from Prefect pipelines."""
