"""Serve a model repository over the Open Inference Protocol v2, by HTTP and gRPC, on KServe's model server.

The parts, from the inside out: ``request`` (what a request is, whatever the protocol), ``http_codec`` and
``grpc_codec`` (bytes and messages to it and back), ``batching`` (requests of several clients in one run), ``sessions``
(ONNX Runtime), ``service`` (the models, behind KServe's interfaces), ``rest`` and ``rpc`` (KServe's endpoints and
servicer over it), ``loading`` and ``server`` (ports, signals, the life of it all).
"""

from __future__ import annotations

from bnfold.serving.options import ServeOptions
from bnfold.serving.run import Announcement, serve

__all__ = ["Announcement", "ServeOptions", "serve"]
