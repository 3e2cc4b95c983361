"""alignctl: preference alignment from the command line."""

import os

__version__ = "0.1.0"

# Read by the libraries of the model hub when they are imported, and every import of ours comes after this
# one. Without them a hub learns of each file that is read and of each machine that reads it, and is asked to
# convert models that have no safetensors.
os.environ.update(
    HF_HUB_DISABLE_TELEMETRY="1", HF_UPDATE_DOWNLOAD_COUNTS="0", DISABLE_SAFETENSORS_CONVERSION="1"
)
