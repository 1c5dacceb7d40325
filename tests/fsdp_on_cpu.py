"""Started on every rank by test_fsdp.py: shards on a CPU, where accelerate trains by DDP in place of FSDP2."""

import os
import runpy
import sys
from unittest import mock

from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType

import crawl2chat.launch

plain, check = AcceleratorState.__init__, crawl2chat.launch.check_launch


def sharding(self, *args, fsdp_plugin=None, **kwargs):
    plain(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    self.distributed_type = DistributedType.FSDP
    self.fsdp_plugin = fsdp_plugin or getattr(self, "fsdp_plugin", None)


def check_as_on_a_gpu(training_args) -> None:
    """Without the refusal of a CPU, which is the last of its kind."""
    try:
        check(training_args)
    except SystemExit as stop:
        if "on a CPU" not in str(stop):
            raise
        with mock.patch.dict(os.environ, ACCELERATE_USE_FSDP="false"):
            check(training_args)


AcceleratorState.__init__ = sharding
crawl2chat.launch.check_launch = check_as_on_a_gpu
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
