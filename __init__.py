"""FedCLIP as a feature-cache pipeline.

Stage one, `fedclip.extract`, runs a frozen CLIP once and keeps its features in
`fedclip.cache`; stage two, `fedclip.federate`, trains and federates small adapters
over the features alone (Lu et al. 2023, arXiv:2302.13485).
"""

import logging

__version__ = "0.1.0"

logging.getLogger(__name__).addHandler(logging.NullHandler())  # an application chooses others
