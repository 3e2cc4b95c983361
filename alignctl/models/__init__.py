"""Models: loading, the packed forward pass, reference log-probabilities, sampling."""

import warnings

from transformers.utils import logging

# Its bars and warnings would draw over the panel; what matters is raised as an error and told by us.
logging.set_verbosity_error()
logging.disable_progress_bar()
warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers\.")
