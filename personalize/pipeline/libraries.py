"""Settings of diffusers and transformers: their progress bars and warnings are switched off."""

import os
import warnings


def quiet_libraries() -> None:
    """Their warnings are about their own optional parts, and to each other about versions to come;
    ours are errors.
    """
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
