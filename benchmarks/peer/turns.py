"""Run one contestant: an epoch for every line on stdin, and a line of JSON on stdout about it.

Called with the name of a module beside this one, the settings as JSON, and the folder of its data.
The module has a function ``train(settings, data, begin, end)`` that trains without end, and calls
``begin`` before each epoch, ``end`` after it. Nothing here or there needs more than torch and the
contestant's own library, so that it runs in an environment that has nothing else.
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
    """Waits for the contestant's turn, and says what it did in it."""

    def __init__(self, replies: TextIO, device: str) -> None:
        self.replies = replies
        self.device = device
        self.start = 0.0

    def begin(self) -> None:
        """Wait for the next turn. Ends the process if there is none."""
        if not sys.stdin.readline():
            sys.exit()
        self.start = self.now()

    def end(self, images: int, steps: int, loss: float, left_out: float = 0.0) -> None:
        """Report an epoch; ``left_out`` seconds of it were spent on something else."""
        seconds = self.now() - self.start - left_out
        report = {"seconds": seconds, "images": images, "steps": steps, "loss": loss}
        print(json.dumps(report), file=self.replies, flush=True)

    def now(self) -> float:
        """Seconds on a clock, with all work on the device done."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def main() -> None:
    """Train as the module named first in ``sys.argv`` does."""
    name, settings_json, data = sys.argv[1:]
    settings = json.loads(settings_json)
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no reply
    torch.set_num_threads(settings["threads"])
    torch.manual_seed(0)
    turns = Turns(replies, settings["device"])
    importlib.import_module(name).train(settings, Path(data), turns.begin, turns.end)


if __name__ == "__main__":
    main()
