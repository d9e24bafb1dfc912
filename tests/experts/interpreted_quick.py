"""Small cases that reach every branch of the training and of the packed kernels, as a JSON object.

A program of its own, since TRITON_INTERPRET must be set before the kernels are imported.
"""

import json
import sys

import torch
from experts import interpreted_packed, interpreted_training
from experts.interpreter import multiply_scaled_operands, round_to_nearest

if __name__ == "__main__":
    torch.set_num_threads(1)
    round_to_nearest()
    multiply_scaled_operands()
    training = {
        name: interpreted_training.errors(case) for name, case in interpreted_training.QUICK.items()
    }
    packed = {
        name: interpreted_packed.error(*interpreted_packed.CASES[name])
        for name in interpreted_packed.QUICK
    }
    json.dump({"training": training, "packed": packed}, sys.stdout)
