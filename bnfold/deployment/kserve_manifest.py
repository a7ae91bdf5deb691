"""A KServe InferenceService for a repository: Triton on Kubernetes.

Source: KServe's v1beta1 API; its runtime ``kserve-tritonserver`` copies ``storageUri`` to the node and gives the folder
to Triton as its model repository, so that the address is the repository's, not the model's.
"""

from __future__ import annotations

import math
import re

from bnfold.deployment.manifest import Serving
from bnfold.extras import require

#: Where the repository is, for the user to fill in.
STORAGE_PLACEHOLDER = "s3://BUCKET/PATH/TO/REPOSITORY"

_GIB = 1 << 30


def service_name(model: str) -> str:
    """A name that Kubernetes takes: a DNS label of at most 63 small letters, digits and dashes."""
    letters = re.sub(r"[^a-z0-9]+", "-", model.lower()).strip("-")
    return (letters if letters[:1].isalpha() else f"model-{letters}")[:63].rstrip("-")


def inference_service(model: str, serving: Serving, peak_bytes: int, storage_uri: str | None) -> str:
    """The YAML document.

    Args:
        model: the model's name.
        serving: how it is run.
        peak_bytes: the most memory that a process with one session of it held.
        storage_uri: where the repository will be; None for a placeholder.

    Raises:
        MissingExtraError: the extra ``triton`` is not installed.
    """
    yaml = require("yaml", "triton")
    resources = {
        "cpu": str(max(serving.threads, 1) * serving.instances),
        "memory": f"{math.ceil(1 + serving.instances * peak_bytes / _GIB)}Gi",  # 1 GiB for the server itself
    }
    if serving.target != "cpu":
        resources["nvidia.com/gpu"] = "1"
    # Without a number of threads ONNX Runtime starts one for each core of the node; a limit would only throttle them.
    limits = {what: amount for what, amount in resources.items() if what != "cpu" or serving.threads > 0}
    document = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": service_name(model)},
        "spec": {
            "predictor": {
                "model": {
                    "modelFormat": {"name": "onnx"},
                    "runtime": "kserve-tritonserver",
                    "protocolVersion": "v2",
                    "storageUri": storage_uri or STORAGE_PLACEHOLDER,
                    "resources": {"requests": resources, "limits": limits},
                }
            }
        },
    }
    return str(yaml.safe_dump(document, sort_keys=False))
