"""Which groups of training pictures made a diffusion model able to make this picture?

GUDA (Group Unlearning-based Data Attribution, arXiv 2601.22651): unlearn each group from one full model offline,
then score a picture by the ELBO difference between the full model and each unlearned one.
"""

import os

# On import transformers warns that torchvision is missing, which nothing here needs.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

__version__ = "0.1.0"
