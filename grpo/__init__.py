"""VeriGRPO: reinforcement learning from verifiable rewards."""

import logging

# Without a log that is open, records go nowhere: Python would show warnings on standard error.
logging.getLogger(__name__).addHandler(logging.NullHandler())
