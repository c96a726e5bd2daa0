"""The training loop.

Every random choice is a function of (seed, epoch, sample id, step), never of a generator that happens to be somewhere.
So the state of a run is small, and a resumed run is bit for bit the one that never stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from .. import __version__, distributed
from ..data.bad_files import too_many_bad, write_bad_files
from ..data.crops import Batch
from ..data.images import may_pass
from ..errors import BadInput, Interrupted, RunFailed
from ..evaluation.scores import select
from ..evaluation.warm_start import moving_averages
from ..kernels import ranks
from ..losses.estimators.sharded import whole_state
from ..models.two_view import convert_sync_batchnorm
from ..progress import clock, rounded
from ..run_folder import RunFolder
from .divergence import check_scores, check_skips
from .ending import worth_of_training, write_checkpoint, write_trained
from .metrics import Clock, Meters, MetricWriter, NullWriter, Writer
from .own.parts import OwnLoss
from .parts import Parts
from .skip import load_optimizer_state
from .step import StepOutcome, TrainStep, sync_outcomes
from .warm_start import exact_pass

STATISTICS = ("objective", "normalizer_mean", "normalizer_std", "temperature")  # of a loss, whose means are written


class Trainer:
    """A run in progress. All that changes is in `state_dict()`.

    Args:
        parts: what `build` has made: all that is trained, and how.
    """

    def __init__(self, parts: Parts) -> None:
        self.parts, self.run, self.source, self.progress = parts, parts.run, parts.source, parts.progress
        self.task, self.model, self.loss = parts.task, parts.model, parts.loss
        self.optimizer, self.loss_optimizers = parts.optimizer, parts.loss_optimizers
        self.total, self.steps_per_epoch = parts.total_steps, parts.steps_per_epoch
        self.per_rank = distributed.per_rank_batch_size(parts.batch_size)
        self.meters = Meters(("loss",) if isinstance(parts.loss, OwnLoss) else STATISTICS, parts.device)
        self.one_step = TrainStep(parts, self.meters)
        self.scaler = self.one_step.scaler

        self.step = 0
        self.counts = {"steps": 0, "skipped": 0, "skipped_in_a_row": 0}
        self.outcomes: list[StepOutcome] = []  # of which the host does not know yet
        self.bad: dict[int, str] = dict(parts.source.bad)
        self.best, self.seconds = float("-inf"), 0.0
        self.clock = Clock(0)
        self.log: Writer = NullWriter()

    @property
    def epoch(self) -> float:
        """Return the epochs done."""
        return self.step / self.steps_per_epoch

    # ------------------------------------------------------------------------------------------------------ the loop
    def fit(self, stop: Callable[[], bool]) -> None:
        """Train to the end, from wherever the state is.

        Args:
            stop: asked after every step.

        Raises:
            Interrupted: `stop()` became true; the state is saved.
            RunFailed: it has diverged, too many bad files, or a full disk.
        """
        parts = self.parts
        torch.set_num_threads(parts.threads)
        if distributed.is_rank0():
            self.log = MetricWriter(self.run, self.step, parts.on_metrics)
        distributed.rank0_first(lambda: self.task.prepare(self.progress))
        loader = self.task.batches(self.step * parts.accumulate, parts.device.type == "cuda")
        self.model.train()
        self.loss.train()
        if distributed.world_size() > 1:
            self._distribute()
        self.progress.start("training", self.total, self.step)
        self.clock = Clock(self.step)
        try:
            if self.step == 0 and distributed.any_rank(self.run.start_file.is_file()) and self.evaluate():
                self.save(best=True)  # the start, which counts among the best
            if self.step == 0 and parts.exact_start:
                self.clock.pause(exact_pass(self.task, self.progress))
                self.progress.start("training", self.total, self.step)
            while self.step < self.total:
                # read
                with self.clock.waiting():
                    batches = [self._without_bad(next(loader)) for _ in range(parts.accumulate)]
                batches = [b for b in batches if not distributed.any_rank(not self.task.has_negatives(b))]
                # forward, backward, optimizer
                self.train_step(batches)
                last = self.step == self.total
                # metrics
                self.progress.advance(self.step, self.total, self.clock.note)
                if last or self.step % parts.log_every == 0:
                    self.write_metrics()
                # scores
                improved = (last or self.step % parts.eval_every == 0) and self.evaluate()
                if parts.diagnose_every and (last or self.step % parts.diagnose_every == 0):
                    self.diagnose()
                # checkpoint
                stopping = distributed.any_rank(stop())
                if last or improved or stopping or (self.step % parts.save_every == 0 and not self.skipping()):
                    self.save(improved)
                if stopping and not last:
                    raise Interrupted(
                        f"stopped at step {self.step:,} of {self.total:,}; continue with `sogclr resume {self.run.path}`"
                    )
            self.finish()
        finally:
            self.progress.stop()
            self.log.close()
            del loader  # ends the reader processes

    def _distribute(self) -> None:
        """Set up what the ranks share: normalizers, BatchNorm's statistics, gradients."""
        self.progress.info(f"processes {distributed.world_size()}, {self.per_rank} samples of each batch on each")
        # normalizers
        if self.parts.shard_state:
            for estimator in moving_averages(self.loss):
                estimator.divide()
        # BatchNorm's statistics
        if not convert_sync_batchnorm([self.model, *self.task.companions()], self.parts.device):
            self.progress.info(f"{'':9} on the CPU each uses BatchNorm's statistics of its own samples; on CUDA of all")
        # gradients
        self.one_step.distribute(distributed.wrap_ddp(self.model, self.parts.device))

    def train_step(self, batches: list[Batch]) -> None:
        """Make one optimizer step on the mean gradient of `batches`, without a wait for the device."""
        outcome = self.one_step(self.step, batches)
        self.outcomes.append(outcome)
        if outcome.known:
            self.sync_outcomes()
        self.step += 1

    def sync_outcomes(self) -> None:
        """Read from the device which steps since the last call were taken, and count them in their order; all ranks call together.

        Waits for the device, so it is called where the run waits anyway: for a line of metrics, a score, a checkpoint.

        Raises:
            RunFailed: ten steps in a row were skipped.
        """
        outcomes, self.outcomes = self.outcomes, []
        for outcome, taken, expected in sync_outcomes(outcomes):
            if taken:
                self.counts["steps"] += 1
                self.counts["skipped_in_a_row"] = 0
            elif not expected:
                self._skipped(outcome)

    def skipping(self) -> bool:
        """Return whether the newest step was skipped: its state may be spoilt, and the checkpoints before it stay."""
        self.sync_outcomes()
        return self.counts["skipped_in_a_row"] > 0

    def _skipped(self, outcome: StepOutcome) -> None:
        """Write that a step was skipped, and of which samples."""
        step, reason = outcome.step + 1, outcome.reason
        ids = [int(i) for index in outcome.ids for i in ranks.gather(index)]
        self.counts["skipped"] += 1
        self.counts["skipped_in_a_row"] += 1
        self.log.write("skipped", step, outcome.step / self.steps_per_epoch, {"reason": reason, "ids": ids})
        shown = ", ".join(self.source.relative(i) for i in ids[:3])
        self.progress.info(
            f"step {step} skipped: {reason} (batch of {len(ids)}, first: {shown}; all ids in metrics.jsonl)"
        )
        check_skips(self.counts["skipped_in_a_row"], step, reason, self.parts)

    def _without_bad(self, batch: Batch) -> Batch:
        """Return a batch cut to the length of the rank that could read the fewest samples, and record the unreadable ones.

        Raises:
            RunFailed: too many files cannot be read.
        """
        count = distributed.all_reduce_min(len(batch.index))
        if count == self.per_rank:
            return batch
        bad = [entry for entries in distributed.all_gather_object(batch.bad) for entry in entries]
        for id, reason in bad:
            if id not in self.bad:
                self.progress.info(f"skipping {self.source.relative(id)}: {reason}")
            self.bad[id] = reason
        distributed.run_on_rank0(self.write_bad)
        self.sync_outcomes()
        if sentence := too_many_bad(self.source, self.bad, self.parts.max_bad):
            raise RunFailed(sentence)
        return batch.first(count)

    # ------------------------------------------------------------------------------------------------ what is written
    def write_bad(self) -> None:
        """Write `bad_files.txt`: every file that could not be read so far, and every row that could not be used, with the reason."""
        unread = [(self.source.relative(i), reason) for i, reason in sorted(self.bad.items())]
        write_bad_files(self.run.bad_file, [*self.source.rejected, *unread])

    def write_metrics(self) -> None:
        """Write one `train` line: means since the last one."""
        self.sync_outcomes()
        values: dict[str, Any] = self.meters.means(self.counts["steps"])
        if not isinstance(self.loss, OwnLoss):
            values["weight_max"] = float(self.meters.largest)
        values |= {"lr": self.parts.learning_rate(self.step), "skipped": self.counts["skipped"]}
        if not self.parts.learned_temperature:
            values.pop("temperature", None)
        for estimator in moving_averages(self.loss):
            values["gamma"] = float(estimator.current_gamma())
        timing = self.clock.lap(self.step, self.parts.batch_size * self.parts.accumulate)
        self.log.write("train", self.step, self.epoch, values, timing)
        shown = [f", {name} {values[name]:.4f}" for name in ("objective", "loss") if name in values]
        self.clock.note = f"{timing['images_per_s']:,.0f} {self.task.things}/s, {timing['data_wait']:.0%} waiting for data{''.join(shown)}"
        self.meters.reset()
        self.counts["steps"] = 0

    def evaluate(self) -> bool:
        """Write one `eval` line, and return whether it is the best so far."""
        self.sync_outcomes()
        begun = time.monotonic()
        on_this_rank = self.task.evaluate()
        scores = distributed.run_on_rank0(lambda: on_this_rank)
        self.clock.pause(time.monotonic() - begun)
        self.log.write("eval", self.step, self.epoch, scores, {"seconds": time.monotonic() - begun})
        self._show_scores(scores, f"   {self.clock.note}")
        check_scores(scores, self.step, self.parts)
        before, self.best = self.best, max(self.best, select(scores))
        return self.best > before

    def diagnose(self) -> None:
        """Write one `diagnosis` line: how far the loss's gradient is from the exact one; the run's state stays as it is."""
        self.sync_outcomes()
        begun = time.monotonic()
        found = distributed.run_on_rank0(self.task.diagnose)
        self.clock.pause(time.monotonic() - begun)
        self.log.write("diagnosis", self.step, self.epoch, found, {"seconds": time.monotonic() - begun})
        self._show_scores({k: found[k] for k in ("F2", "bias", "cosine", "variance", "normalizer_rmse") if k in found})

    def _show_scores(self, scores: dict[str, float], note: str = "") -> None:
        shown = ", ".join(f"{k} {v:.4f}" for k, v in scores.items())
        self.progress.info(f"epoch {rounded(self.epoch)}: {shown}{note}")

    def save(self, best: bool = False) -> None:
        """Write a checkpoint of everything.

        Args:
            best: whether it is the best so far too.
        """
        begun = time.monotonic()
        state = self.state_dict()
        distributed.run_on_rank0(lambda: write_checkpoint(state, self.parts, best))
        self.clock.pause(time.monotonic() - begun)

    def finish(self) -> None:
        """Write the encoder file, which marks the run as finished."""
        self.sync_outcomes()
        self.seconds += self.clock.total()
        self.log.write("end", self.step, self.epoch, {}, {"seconds": self.seconds})
        distributed.run_on_rank0(lambda: write_trained(self.model, self.task, self.run))
        self.progress.info(f"trained {rounded(self.epoch)} epochs in {clock(self.seconds)}")
        if distributed.is_rank0() and (line := worth_of_training(self.task, self.run)):
            self.progress.info(line)

    # ------------------------------------------------------------------------------------------------------ the state
    def state_dict(self) -> dict[str, Any]:
        """Return everything that changes in training, of types that `torch.load(weights_only=True)` reads.

        All ranks call together where the loss's state is divided among them; the main one then has it whole. Outcomes of
        steps are no part of it: the host learns them first.
        """
        self.sync_outcomes()
        return {
            "version": __version__,
            "step": self.step,
            "model": self.model.state_dict(),
            "loss": whole_state(self.loss),
            "optimizer": self.optimizer.state_dict(),
            "loss_optimizers": [o.state_dict() for o in self.loss_optimizers],
            "scaler": self.scaler.state_dict(),
            "meters": {**self.meters.state_dict(), "counts": dict(self.counts)},
            "best": self.best,
            "bad": {id: reason for id, reason in self.bad.items() if not may_pass(reason)},
            "manifest": self.source.fingerprint,
            "seconds": self.seconds + self.clock.total(),
            **self.task.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`.

        Raises:
            BadInput: it belongs to other samples.
        """
        if state["manifest"] != self.source.fingerprint:
            raise BadInput(
                f"the checkpoint was made on other {self.task.things} than the run's manifest lists; restore the run's own files"
            )
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.loss.load_state_dict(state["loss"])
        load_optimizer_state(self.optimizer, state["optimizer"])
        for optimizer, saved in zip(self.loss_optimizers, state["loss_optimizers"], strict=True):
            load_optimizer_state(optimizer, saved)
        self.task.load_state_dict(state)
        self.scaler.load_state_dict(state["scaler"])
        self.meters.load_state_dict(state["meters"])
        self.counts = dict(state["meters"]["counts"])
        self.best, self.bad, self.seconds = state["best"], self.bad | state["bad"], state["seconds"]

    def start_from(self, source: RunFolder, state: dict[str, Any]) -> int:
        """Take weights and, for the samples that both runs have, normalizers and temperatures from another run.

        Returns:
            How many such samples there are; 0 if the losses keep nothing of a sample in common.

        Raises:
            RuntimeError: the runs' models differ.
        """
        self.model.load_state_dict(state["model"])
        return self.task.transfer(source, state["loss"])
