"""Keeps gRPC from writing of connections that failed to standard error: its calls say so themselves.

It is imported before gRPC is, which reads this once. Who sets GRPC_VERBOSITY gets what it asks for.
"""

import os

os.environ.setdefault("GRPC_VERBOSITY", "NONE")
