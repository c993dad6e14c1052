"""DeepSpeed inference engines, the default."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

from mpiserve.backends.torch_backend import TorchBackend, set_eval
from mpiserve.errors import ArgumentError, Code

if TYPE_CHECKING:
    import torch


class DeepSpeedBackend(TorchBackend):
    """Runs a module in an engine of `deepspeed.init_inference`.

    Takes the models and options of the torch backend, and the option `init_inference`:
    a table of further keyword arguments of that function.
    """

    known_options = (*TorchBackend.known_options, "init_inference")

    def prepare(self, module: torch.nn.Module) -> Any:
        """Hand the module to DeepSpeed."""
        deepspeed = import_deepspeed(self.device.type)
        options = self.service.options.get("init_inference", {})
        if "dtype" in options:
            key = f"service.{self.service.name}.options.init_inference.dtype"
            raise ArgumentError(Code.EARG, f"{key}: set dtype of the service itself")
        # DeepSpeed's own default, float16, is not for CPUs: the dtype is always said.
        engine = deepspeed.init_inference(set_eval(module), dtype=self.dtype, **options)
        return set_eval(engine)


def import_deepspeed(device: str) -> Any:
    """Import DeepSpeed for a kind of device, quietly and without its shared-memory all-reduce.

    DeepSpeed 0.19.8 compiles that operation when a process group is made (over a
    minute, the first time), and it ignores which ranks belong to the group.
    """
    os.environ.setdefault("DS_ACCELERATOR", device)
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
