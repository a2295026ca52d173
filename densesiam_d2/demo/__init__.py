"""The demo: all steps from unlabelled images to a report, on data that needs no download."""

import logging
import warnings

# Hide torch's warnings about detectron2's code: they would mix with the demo's output, and users cannot fix them.
warnings.filterwarnings("ignore", message="`torch.jit.script", category=FutureWarning)
warnings.filterwarnings("ignore", message="torch.meshgrid", category=UserWarning)
logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
