"""The demo: the whole way from unlabelled images to a report, on data that needs no download."""

import logging
import warnings

# Torch's remarks on detectron2's code would stand between the demo's own lines, and no user can act on them.
warnings.filterwarnings("ignore", message="`torch.jit.script", category=FutureWarning)
warnings.filterwarnings("ignore", message="torch.meshgrid", category=UserWarning)
logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
