"""What hospitals and the coordinator share; imports none of the other rooms."""

import os

# Flower reads both once, when it is first imported, and every room imports this one before: nothing is reported to
# anybody, nothing looks for updates.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
