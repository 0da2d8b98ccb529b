"""Run one contestant: train an epoch for each line on stdin, and print a line of JSON.

The arguments are the name of a module in this folder, the settings as JSON, and the folder of its
data. The module has a function ``train(settings, data, begin, end)`` that trains until the process
ends, and calls ``begin`` before each epoch and ``end`` after it. This module needs only torch,
so that it runs in the contestant's own environment.
"""

import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import TextIO

import torch


class Turns:
    """Waits for the contestant's turns, and reports its epochs."""

    def __init__(self, replies: TextIO, device: str) -> None:
        self.replies = replies
        self.device = device
        self.start = 0.0

    def begin(self) -> None:
        """Wait for the next turn. End the process when stdin is closed."""
        if not sys.stdin.readline():
            sys.exit()
        self.start = self.now()

    def end(self, images: int, steps: int, loss: float, left_out: float = 0.0) -> None:
        """Report an epoch. Its time does not include ``left_out`` seconds."""
        seconds = self.now() - self.start - left_out
        report = {"seconds": seconds, "images": images, "steps": steps, "loss": loss}
        print(json.dumps(report), file=self.replies, flush=True)

    def now(self) -> float:
        """Return the time in seconds after the device has finished all its work."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def main() -> None:
    """Train in turns with the module that ``sys.argv`` names."""
    name, settings_json, data = sys.argv[1:]
    settings = json.loads(settings_json)
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # output of a library must not mix with the replies
    torch.set_num_threads(settings["threads"])
    torch.manual_seed(0)
    turns = Turns(replies, settings["device"])
    importlib.import_module(name).train(settings, Path(data), turns.begin, turns.end)


if __name__ == "__main__":
    main()
