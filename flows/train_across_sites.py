"""Train at several sites at once and keep the best model. Copy this file and make it yours.

It needs saved `TrainingJob` blocks, for example those of blocks/sandbox.yaml:

    prefect-mantik blocks save blocks/sandbox.yaml --env-file .env.sandbox
    python flows/train_across_sites.py train-alder train-birch train-cedar

The flow itself is in the package (prefect_mantik/flows/train_across_sites.py), so that it can be deployed without
copying anything; read it there, it is short.
"""

import sys

from prefect_mantik.flows.train_across_sites import train_across_sites

if __name__ == "__main__":
    names = sys.argv[1:] or ["train-alder", "train-birch", "train-cedar"]
    best = train_across_sites(jobs=list(names), metric="val_loss", mode="min", model_name="digits")
    print(f"best: {best['best_site']} with {best['metric']} = {best['value']:.4g}, {best['model']} v{best['version']}")
