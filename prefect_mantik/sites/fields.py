"""Fields that the blocks of all kinds of site have."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

Settle = Annotated[
    float,
    Field(
        title="Settle time",
        description="Seconds without a trace of a run that prove its absence after an unclear answer.",
        ge=0,
    ),
]

PollShortest = Annotated[
    float,
    Field(
        title="Shortest poll interval",
        description="Seconds between two polls of a run, at least. 0 for the setting "
        "PREFECT_INTEGRATIONS_MANTIK_POLL_SHORTEST.",
        ge=0,
    ),
]

PollLongest = Annotated[
    float,
    Field(
        title="Longest poll interval",
        description="Seconds between two polls of a run, at most. 0 for the setting "
        "PREFECT_INTEGRATIONS_MANTIK_POLL_LONGEST.",
        ge=0,
    ),
]
