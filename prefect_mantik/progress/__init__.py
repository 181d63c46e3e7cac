"""The card of progress: one Markdown artifact for each flow run, with a table of its training runs."""

from prefect_mantik.progress.card import Progress, progress_card, progress_card_of

__all__ = ["Progress", "progress_card", "progress_card_of"]
