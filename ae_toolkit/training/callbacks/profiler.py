"""What takes the time in a training step: a few steps are recorded, then the training goes on.

ae train RECIPE --profile       # runs/NAME/profile.json, for chrome://tracing or Perfetto
"""

from __future__ import annotations

import os

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from ae_toolkit.console import log
from ae_toolkit.contracts import Callback
from ae_toolkit.errors import RunError
from ae_toolkit.files import replacing
from ae_toolkit.training.state import Training

SKIPPED_STEPS = 10  #: steps before anything is recorded: compilation and first touches
WARMUP_STEPS = 3  #: steps that warm the recorder itself up
RECORDED_STEPS = 10  #: steps
MAX_TABLE_ROWS = 8  #: operators in the table

TRACE_FILE = "profile.json"


class Profiler(Callback):
    """Records some steps into `profile.json` of the run directory, and says what took longest."""

    def __init__(self) -> None:
        self.passed, self.is_done = 0, False
        self.recorder: profile | None = None

    def on_start(self, training: Training) -> None:
        if not training.is_main_process:
            return
        device, path = training.setup.device, training.run / TRACE_FILE
        kinds = {ProfilerActivity.CPU}
        if device.type == "cuda":
            kinds.add(ProfilerActivity.CUDA)
        # What its library has to say on standard error is meant for its authors.
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")

        def keep(recorder: profile) -> None:
            if self.passed <= SKIPPED_STEPS + WARMUP_STEPS:
                return
            self.is_done = True
            try:
                with replacing(path) as temporary:
                    recorder.export_chrome_trace(str(temporary))
            except RunError as error:
                log(f"--profile: {error}")
            num_steps = self.passed - SKIPPED_STEPS - WARMUP_STEPS
            log(f"{path}: {table(recorder, device, num_steps=num_steps)}")

        when = schedule(wait=SKIPPED_STEPS, warmup=WARMUP_STEPS, active=RECORDED_STEPS, repeat=1)
        self.recorder = profile(
            activities=kinds, schedule=when, on_trace_ready=keep, acc_events=True
        )
        self.recorder.start()

    def on_step(self, training: Training) -> None:
        if self.recorder is None or self.is_done:
            return
        self.passed += 1
        self.recorder.step()
        if self.is_done:
            self.recorder.stop()

    def on_end(self, training: Training) -> None:
        if self.recorder is None or self.is_done:
            return
        self.recorder.stop()
        if not self.is_done:
            few = SKIPPED_STEPS + WARMUP_STEPS
            log(f"--profile: nothing was recorded, the training has {few} steps or fewer")


def table(recorder: profile, device: torch.device, *, num_steps: int) -> str:
    """The operators that took longest, each without those that it calls, a line each."""
    field = "self_cpu_time_total" if device.type == "cpu" else "self_device_time_total"
    rows = [(getattr(e, field), e.count, e.key) for e in recorder.key_averages()]
    rows = sorted((row for row in rows if not row[2].startswith("ProfilerStep")), reverse=True)
    total = sum(row[0] for row in rows) or 1
    where = "CPU" if device.type == "cpu" else "GPU"
    head = f"{total / num_steps / 1000:.2f} ms of {where} time a step, in the mean of {num_steps}"
    lines = []
    for spent, count, name in rows[:MAX_TABLE_ROWS]:
        each = f"{spent / num_steps / 1000:9.3f} ms {count / num_steps:6.1f}x"
        lines.append(f"  {spent / total:6.1%} {each}  {name}")
    return "\n".join([head, *lines])
