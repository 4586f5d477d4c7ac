"""Imported once by the server that the variants' processes are forked from: the slow libraries, kept quiet, no thread started."""

# ruff: noqa: E402, F401

from harness.models import base_model

base_model.quiet_libraries()

import bitsandbytes
import peft
import torch
import transformers
