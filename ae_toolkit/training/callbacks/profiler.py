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
        self.num_recorded = -SKIPPED_STEPS - WARMUP_STEPS
        self.recorder: profile | None = None

    def on_start(self, training: Training) -> None:
        if not training.is_main_process:
            return
        kinds = {ProfilerActivity.CPU}
        if training.setup.device.type == "cuda":
            kinds.add(ProfilerActivity.CUDA)
        # What its library has to say on standard error is meant for its authors.
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")
        when = schedule(wait=SKIPPED_STEPS, warmup=WARMUP_STEPS, active=RECORDED_STEPS, repeat=1)
        self.recorder = profile(activities=kinds, schedule=when, acc_events=True)
        self.recorder.start()

    def on_step(self, training: Training) -> None:
        if self.recorder is None:
            return
        self.num_recorded += 1
        self.recorder.step()
        if self.num_recorded == RECORDED_STEPS:
            self.on_end(training)

    def on_end(self, training: Training) -> None:
        recorder, self.recorder = self.recorder, None
        if recorder is None:
            return
        recorder.stop()
        if self.num_recorded <= 0:
            few = SKIPPED_STEPS + WARMUP_STEPS
            log(f"--profile: nothing was recorded, the training has {few} steps or fewer")
            return
        path = training.run / TRACE_FILE
        try:
            with replacing(path) as temporary:
                recorder.export_chrome_trace(str(temporary))
        except RunError as error:
            log(f"--profile: {error}")
        log(f"{path}: {table(recorder, training.setup.device, num_steps=self.num_recorded)}")


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
