"""The platform's compute backend config: which site a run goes to, with which resources and in which environment.

The platform ignores keys that it does not know and casts what it can. A misspelt key then costs a night in the queue,
so that every key, type and combination is checked before anything is sent. The rules are those by which the platform
reads and renders a config, and the names of older generations of the schema are answered with today's.

    schema.py     what a config may hold, typed            rules.py      what one value must be
    checking.py   a mapping against the schema             advice.py     what is allowed and yet worth a word
    reading.py    files and texts, with line numbers       shell.py      the text that will run
    script.py     the bash script of a job                 unicore.py, slurm.py   the job around it

`docs/backend-config.md` is the user's page, with the differences to what the platform makes of the same config.
"""

from prefect_mantik.backend_config.advice import retired
from prefect_mantik.backend_config.checking import (
    backend_kind,
    check_backend_config,
    parse_backend_config,
    site_label,
    with_variables,
)
from prefect_mantik.backend_config.findings import ConfigFinding, Severity
from prefect_mantik.backend_config.inspecting import inspect_backend_config, load_backend_config
from prefect_mantik.backend_config.schema import (
    Apptainer,
    BackendConfig,
    BackendKind,
    Environment,
    Firecrest,
    Resources,
    Ssh,
)
from prefect_mantik.backend_config.script import training_script
from prefect_mantik.backend_config.slurm import refuse_unsendable, slurm_fields, slurm_script
from prefect_mantik.backend_config.unicore import unicore_job

__all__ = [
    "Apptainer",
    "BackendConfig",
    "BackendKind",
    "ConfigFinding",
    "Environment",
    "Firecrest",
    "Resources",
    "Severity",
    "Ssh",
    "backend_kind",
    "check_backend_config",
    "inspect_backend_config",
    "load_backend_config",
    "parse_backend_config",
    "refuse_unsendable",
    "retired",
    "site_label",
    "slurm_fields",
    "slurm_script",
    "training_script",
    "unicore_job",
    "with_variables",
]
