"""recalign: from an interaction log to a preference-aligned LLM recommender.

Importing the package is cheap and sets what must be set before any heavy library is imported.
"""

import os

__version__ = "0.1.0"

_ENVIRONMENT = {
    # Two threads that spin while another process uses a core make CPU kernels up to 15 times slower.
    "OMP_WAIT_POLICY": "PASSIVE",
    "TOKENIZERS_PARALLELISM": "false",
    # Telemetry of every tool is off; whoever wants it sets the variable themselves.
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "1",
    "GX_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
for _name, _value in _ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)
