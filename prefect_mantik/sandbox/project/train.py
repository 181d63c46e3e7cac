"""Train a small neural network on handwritten digits and track it with MLflow."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import mlflow
import mlflow.sklearn
import sklearn
from sklearn.datasets import load_digits
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier


def read_arguments() -> argparse.Namespace:
    """Read the hyper-parameters from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--learning-rate", type=float, default=0.01)
    parser.add_argument("--hidden", type=int, default=32)
    parser.add_argument("--alpha", type=float, default=1e-4)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    """Train epoch by epoch; the run to log to is named by MLFLOW_RUN_ID."""
    arguments = read_arguments()
    images, labels = load_digits(return_X_y=True)
    x_train, x_val, y_train, y_val = train_test_split(images / 16.0, labels, random_state=0, stratify=labels)
    model = MLPClassifier(
        hidden_layer_sizes=(arguments.hidden,),
        learning_rate_init=arguments.learning_rate,
        alpha=arguments.alpha,
        batch_size=arguments.batch_size,
        random_state=arguments.seed,
    )
    with mlflow.start_run():
        mlflow.log_params(vars(arguments))
        for epoch in range(arguments.epochs):
            model.partial_fit(x_train, y_train, classes=range(10))
            metrics = {
                "loss": log_loss(y_train, model.predict_proba(x_train), labels=range(10)),
                "val_loss": log_loss(y_val, model.predict_proba(x_val), labels=range(10)),
                "val_accuracy": model.score(x_val, y_val),
            }
            mlflow.log_metrics(metrics, step=epoch)
            print(f"epoch {epoch}: " + ", ".join(f"{k} {v:.4f}" for k, v in metrics.items()), flush=True)
        with tempfile.TemporaryDirectory() as directory:
            # Saved first and uploaded as plain artifacts: servers of MLflow 2 know no other way.
            path = Path(directory) / "model"
            requirements = [f"scikit-learn=={sklearn.__version__}"]
            # Named, since MLflow 3 changed its default to a format that MLflow 2 cannot read.
            mlflow.sklearn.save_model(model, path, serialization_format="cloudpickle", pip_requirements=requirements)
            mlflow.log_artifacts(str(path), "model")


if __name__ == "__main__":
    main()
