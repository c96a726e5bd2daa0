"""Training: the step, and the loop around it.

Every random choice is a function of (seed, epoch, image id, step), never of a generator that happens to be somewhere.
So the state of a run is small, and a resumed run is bit for bit the one that never stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .. import __version__
from .. import distributed as distributed_module
from ..checkpoint import save_checkpoint
from ..config.schema import TrainConfig
from ..data.augment import Augmentation
from ..data.bad_files import too_many_bad, write_bad_files
from ..data.labels import Labels
from ..data.loader import Batch
from ..data.manifest import Manifest
from ..data.pairs import Pairs
from ..data.recipe import Recipe, recipe_from_table
from ..data.sampler import ResumableSampler
from ..errors import BadInput, Interrupted, RunFailed
from ..kernels import ranks
from ..losses import MoCoLoss, NonFinite
from ..losses.estimators import MovingAverage
from ..losses.estimators.sharded import whole_state
from ..models.encoder import EncoderInfo, save_encoder
from ..models.two_view import synchronize_statistics
from ..progress import Progress, clock
from ..run_folder import RunFolder
from .build_loss import build_loss_optimizers
from .grad_cache import GradCache
from .image_task import ImageTask
from .metrics import Clock, MetricWriter, NullWriter
from .momentum_encoder import MomentumEncoder
from .optim import build_optimizer, warmup_cosine
from .outcomes import StepOutcome, StepOutcomes
from .pair_task import PairTask
from .skip import copy_where_, grads_finite, load_optimizer_state, step_where

SKIPS_IN_A_ROW = 10  # this many steps without a finite gradient, and the run stops
METERS = ("objective", "normalizer_mean", "normalizer_std", "temperature", "grad_norm")


class Trainer:
    """A run in progress. All that changes is in `state_dict()`.

    Args:
        config: resolved (`defaults.resolve`).
        manifest: the images, or the pairs of images and captions; ids and the size of the loss's state come from it.
        labels: of images, for the online evaluation, or None.
    """

    def __init__(
        self, config: TrainConfig, run: RunFolder, manifest: Manifest | Pairs, labels: Labels | None, screen: Progress
    ) -> None:
        self.config, self.run, self.manifest, self.screen = config, run, manifest, screen
        self.task: Any = (
            PairTask(config, run, manifest) if isinstance(manifest, Pairs) else ImageTask(config, run, manifest, labels)
        )
        data, options, optim = config.data, config.run, config.optim
        if not (data.image_size and options.max_steps):
            raise ValueError("choices are open in this configuration; defaults.resolve makes them")
        self.device = distributed_module.local_device(torch.device(options.device))
        self.share = distributed_module.per_rank_batch_size(options.batch_size)
        self.total = options.max_steps
        self.sampler = ResumableSampler(manifest.usable, options.batch_size, options.seed)
        self.steps_per_epoch = max(1, self.sampler.steps_per_epoch // optim.accumulate)
        self.info = EncoderInfo(str(config.model.model), data.image_size, background=data.background)
        self.recipe = recipe_from_table(Recipe(), config.recipe)
        self.augment = Augmentation(self.recipe, data.image_size, self.info.mean, self.info.std, options.seed)

        self.model = self.task.build_model().to(self.device)
        if options.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.forward = torch.compile(self.model) if options.compile else self.model
        self.micro = GradCache(self.model, self.forward, optim.micro_batch) if optim.micro_batch else None
        self.loss = self.task.build_loss().to(self.device)
        self.keys = self._key_encoder() if isinstance(self.loss, MoCoLoss) else None
        self.optimizer = build_optimizer(self.model, optim, self.task.rates())
        self.loss_optimizers = build_loss_optimizers(self.loss, config)
        warmup = round((optim.warmup_epochs or 0) * self.steps_per_epoch)
        self.rate = warmup_cosine(self.total, warmup)
        self.scaler = torch.amp.GradScaler(self.device.type, init_scale=2.0**14, enabled=options.precision == "fp16")

        self.step = 0
        self.sums = torch.zeros(len(METERS), device=self.device)
        self.weight_max = torch.zeros((), device=self.device)
        self.counts = {"steps": 0, "skipped": 0, "skipped_in_a_row": 0}
        self.verdicts = StepOutcomes()
        self._one = torch.ones((), device=self.device)
        self.best = float("-inf")
        self.bad: dict[int, str] = dict(manifest.bad)
        self.seconds = 0.0
        self.clock = Clock(0)
        self._buffers = [b for module in (self.model, self.keys) if module is not None for b in module.buffers()]
        self._kept = [b.clone() for b in self._buffers]

    # ------------------------------------------------------------------------------------------------------ one step
    def train_step(self, batches: list[Batch]) -> None:
        """One optimizer step on the mean gradient of `batches`; skipped, with all state as before, if it is not finite.

        Nothing here waits for the device: whether the gradient is finite only the device knows, until `settle`.
        """
        # what a backbone may draw: dropout, drop path; on each rank something else
        torch.manual_seed((self.config.run.seed * 1_000_003 + self.step + (distributed_module.rank() << 53)) % 2**64)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * group["rate"]
        for optimizer in (self.optimizer, *self.loss_optimizers):
            optimizer.zero_grad(set_to_none=True)
        copy_where_(self._buffers, into=self._kept)
        before: list[tuple[Any, Any]] = []
        statistics = []
        ok, reason = None, "the gradient is not finite"
        try:
            if not batches:
                raise NonFinite("the batch holds nothing to contrast with", [])
            for batch in batches:
                stateful = self.task.stateful(self.loss, batch)
                there = [(part, ids.to(self.device, non_blocking=True)) for part, ids in stateful]
                before += [(part, part.snapshot(ranks.gather(ids))) for part, ids in there]
                loss = self.loss_of(batch)
                statistics.append(self.loss.statistics)
                self.scaler.scale(loss / len(batches)).backward()
                if self.micro is not None:
                    self.micro.backward()
            norm, ok = self._norm()
        except NonFinite as error:  # on the CPU alone, where the host looks at the embeddings
            reason = str(error)
        self._undo(before, unless=ok)
        expected = torch.zeros_like(self._one, dtype=torch.bool)
        if ok is not None:
            for optimizer in (self.optimizer, *self.loss_optimizers):
                step_where(ok, optimizer)
            if self.keys is not None:
                self.keys.update(self.model, self.step, ok)
            self._meter(statistics, norm, ok)
            if self.scaler.is_enabled():
                expected = self.scaler.scale(self._one) > 1
                self.scaler.update()
        taken = torch.zeros_like(expected) if ok is None else ok
        ids = [b.index.clone() for b in batches]  # a reader's own would keep a file of shared memory open each
        self.verdicts.add(StepOutcome(self.step, ids, reason, taken, expected))
        if ok is None:
            self.settle()
        self.step += 1

    def _norm(self) -> tuple[Tensor, Tensor]:
        """The norm of the model's gradient, which is clipped; and whether it and the gradient of the loss's own are finite."""
        for optimizer in (self.optimizer, *self.loss_optimizers):
            self.scaler.unscale_(optimizer)
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if self.config.optim.clip_grad:
            nn.utils.clip_grads_with_norm_(parameters, self.config.optim.clip_grad, norm)
        return norm, grads_finite(norm, list(self.loss.parameters()))

    def _undo(self, before: list[tuple[Any, Any]], unless: Tensor | None) -> None:
        """What the forward passes changed, except where `unless`."""
        copy_where_(self._kept, into=self._buffers, unless=unless)
        if self.micro is not None:
            self.micro.forget()
        for module, saved in reversed(before):
            module.restore(saved, unless)

    def loss_of(self, batch: Batch) -> Tensor:
        """One forward pass of what the task makes of a batch, and the loss of the embeddings."""
        inputs = self.task.inputs(batch, self.augment, self.device)
        with self._autocast():
            return self.task.loss_of(self.micro or self.forward, self.loss, inputs, self.task.ids(batch), self.keys)

    def _autocast(self) -> torch.autocast:
        precision = self.config.run.precision
        dtype = torch.float16 if precision == "fp16" else torch.bfloat16
        return torch.autocast(self.device.type, dtype=dtype, enabled=precision != "fp32")

    def _key_encoder(self) -> MomentumEncoder:
        options = self.config.loss
        keys = MomentumEncoder(self.model, options.key_momentum, options.key_schedule == "cosine", self.total)
        return keys.to(self.device)

    def _averages(self) -> list[MovingAverage]:
        return [m for m in self.loss.modules() if isinstance(m, MovingAverage)]

    def _meter(self, statistics: list[dict[str, Tensor]], norm: Tensor, ok: Tensor) -> None:
        rows = [torch.stack([*(s[name] for name in METERS[:-1]), norm]) for s in statistics]
        self.sums = torch.where(ok, self.sums + torch.stack(rows).mean(dim=0), self.sums)
        largest = torch.stack([self.weight_max, *(s["weight_max"] for s in statistics)]).max()
        self.weight_max = torch.where(ok, largest, self.weight_max)

    def settle(self) -> None:
        """Learn which steps since the last call were taken, and account for them in their order; all ranks call together.

        Waits for the device, so it is called where the run waits anyway: for a line of metrics, a score, a checkpoint.

        Raises:
            RunFailed: ten steps in a row were skipped.
        """
        for verdict, taken, expected in self.verdicts.settle():
            if taken:
                self.counts["steps"] += 1
                self.counts["skipped_in_a_row"] = 0
            elif not expected:
                self._skipped(verdict)

    def _skipped(self, verdict: StepOutcome) -> None:
        step, reason = verdict.step + 1, verdict.reason
        ids = [int(i) for index in verdict.ids for i in ranks.gather(index)]
        self.counts["skipped"] += 1
        self.counts["skipped_in_a_row"] += 1
        self.log.write("skipped", step, verdict.step / self.steps_per_epoch, {"reason": reason, "ids": ids})
        shown = ", ".join(self.manifest.relative(i) for i in ids[:3])
        self.screen.info(
            f"step {step} skipped: {reason} (batch of {len(ids)}, first: {shown}; all ids in metrics.jsonl)"
        )
        if self.counts["skipped_in_a_row"] >= SKIPS_IN_A_ROW:
            raise distributed_module.said_once(
                RunFailed(
                    f"{SKIPS_IN_A_ROW} steps in a row had no finite gradient, the last at step {step}: {reason}; lower --lr "
                    f"(now {self.config.optim.lr:.4g}), add --clip-grad 1, raise --temperature or use --precision fp32"
                )
            )

    # ------------------------------------------------------------------------------------------------------ the loop
    @property
    def epoch(self) -> float:
        """Epochs done."""
        return self.step / self.steps_per_epoch

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return float(self.config.optim.lr or 0.0) * self.rate(self.step)

    def fit(self, stop: Callable[[], bool]) -> None:
        """Train to the end, from wherever the state is.

        Raises:
            Interrupted: `stop()` became true; the state is saved.
            RunFailed: no finite gradients, too many bad files, or a full disk.
        """
        torch.set_num_threads(self.config.run.threads or 1)
        accumulate = self.config.optim.accumulate
        self.log = MetricWriter(self.run, self.step) if distributed_module.is_rank0() else NullWriter()
        distributed_module.rank0_first(
            lambda: self.task.prepare(self.model, self.info, self.device, self.screen.progress)
        )
        loader = self.task.loader(self.recipe, self.step * accumulate, self.device.type == "cuda")
        self.model.train()
        self.loss.train()
        if distributed_module.world_size() > 1:
            self._join()
        self.screen.start("training", self.total, self.step)
        self.clock = Clock(self.step)
        try:
            while self.step < self.total:
                with self.clock.waiting():
                    batches = [self._without_bad(next(loader)) for _ in range(accumulate)]
                self.train_step([b for b in batches if not distributed_module.any_rank(not self.task.contrasts(b))])
                self._after_step(stop)
            self.finish()
        finally:
            self.screen.stop()
            self.log.close()
            del loader  # ends the reader processes

    def _join(self) -> None:
        """Let the ranks train one model.

        DDP lays out what it sums after its first backward pass. A pass that counts for nothing comes first, so that
        from the first step on sums are made in one order, in a run that goes on as in one that never stopped.
        """
        self.screen.info(f"processes {distributed_module.world_size()}, {self.share} samples of each batch on each")
        if self.config.run.shard_state:
            for estimator in self._averages():
                estimator.divide()
        if not synchronize_statistics([m for m in (self.model, self.keys) if m is not None], self.device):
            self.screen.info("          on the CPU each uses BatchNorm's statistics of its own samples; on CUDA of all")
        together = distributed_module.wrap_ddp(self.model, self.device)
        self.forward = torch.compile(together) if self.config.run.compile else together
        if self.micro is not None:
            self.micro.forward = self.forward
        copy_where_(self._buffers, into=self._kept)
        side = self.config.data.image_size or 0
        blank = torch.zeros(2, 2, side, side, 3, dtype=torch.uint8)
        inputs = self.task.inputs(
            Batch(0, 0, torch.from_numpy(self.manifest.usable[:2]), blank, []), self.augment, self.device
        )
        with self._autocast():
            outputs = self.forward(*inputs)
        sum(z.float().sum() for z in (outputs if isinstance(outputs, tuple) else (outputs,))).backward()
        self.optimizer.zero_grad(set_to_none=True)
        copy_where_(self._kept, into=self._buffers)

    def _after_step(self, stop: Callable[[], bool]) -> None:
        options = self.config.run
        self.screen.advance(self.step, self.total, self.clock.note)
        if self.step % (options.log_every or 1) == 0 or self.step == self.total:
            self.write_metrics()
        improved = False
        if self.step % ((options.eval_every or 1) * self.steps_per_epoch) == 0 or self.step == self.total:
            improved = self.evaluate()
        every = options.diagnose_every
        if every and (self.step % (every * self.steps_per_epoch) == 0 or self.step == self.total):
            self.diagnose()
        stopping = distributed_module.any_rank(stop())
        if improved or stopping or self.step % (options.save_every or 1) == 0 or self.step == self.total:
            self.save(improved)
        if stopping and self.step < self.total:
            raise distributed_module.said_once(
                Interrupted(
                    f"stopped at step {self.step:,} of {self.total:,}; continue with `sogclr resume {self.run.path}`"
                )
            )

    def _without_bad(self, batch: Batch) -> Batch:
        """Keeps account of the files that could not be read; stops the run when they are too many.

        Every rank goes on with as many samples as the one that could read the fewest.
        """
        count = distributed_module.all_reduce_min(len(batch.index))
        if count == self.share:
            return batch
        bad = [entry for entries in distributed_module.all_gather_object(batch.bad) for entry in entries]
        for id, reason in bad:
            if id not in self.bad:
                self.screen.info(f"skipping {self.manifest.relative(id)}: {reason}")
            self.bad[id] = reason
        distributed_module.run_on_rank0(self.write_bad)
        self.settle()
        if sentence := too_many_bad(self.manifest, self.bad, self.config.data.max_bad):
            raise distributed_module.said_once(RunFailed(sentence))
        return batch.first(count)

    def write_bad(self) -> None:
        """`bad_files.txt`: every file that could not be read so far, and every row that could not be used, with the reason."""
        unread = [(self.manifest.relative(i), reason) for i, reason in sorted(self.bad.items())]
        write_bad_files(self.run.bad_file, [*self.manifest.rejected, *unread])

    def write_metrics(self) -> None:
        """One `train` line: means since the last one."""
        self.settle()
        count = max(1, self.counts["steps"])
        values = dict(zip(METERS, (self.sums / count).tolist(), strict=True)) if self.counts["steps"] else {}
        values |= {
            "weight_max": float(self.weight_max),
            "lr": self.lr,
            "skipped": self.counts["skipped"],
        }
        if self.config.loss.temperature_mode == "constant":
            values.pop("temperature", None)
        for estimator in self._averages():
            values["gamma"] = float(estimator.current_gamma())
        timing = self.clock.lap(self.step, self.config.run.batch_size * self.config.optim.accumulate)
        self.log.write("train", self.step, self.epoch, values, timing)
        self.clock.note = f"{timing['images_per_s']:,.0f} images/s, {timing['data_wait']:.0%} waiting for data" + (
            f", objective {values['objective']:.4f}" if "objective" in values else ""
        )
        self.sums.zero_()
        self.weight_max = torch.zeros((), device=self.device)
        self.counts["steps"] = 0

    def evaluate(self) -> bool:
        """One `eval` line; whether it is the best so far."""
        self.settle()
        begun = time.monotonic()
        shared = self.task.evaluate(self.model, self.info, self.augment, self.device)
        scores = distributed_module.run_on_rank0(lambda: shared)
        self.clock.pause(time.monotonic() - begun)
        self.log.write("eval", self.step, self.epoch, scores, {"seconds": time.monotonic() - begun})
        self.screen.info(
            f"epoch {self.epoch:g}: " + ", ".join(f"{k} {v:.4f}" for k, v in scores.items()) + f"   {self.clock.note}"
        )
        score = next(iter(scores.values()))
        improved = score > self.best
        self.best = max(self.best, score)
        return improved

    def diagnose(self) -> None:
        """One `diagnosis` line: how far the loss's gradient is from the exact one; nothing of the run's state changes."""
        self.settle()
        begun = time.monotonic()
        found = distributed_module.run_on_rank0(
            lambda: self.task.diagnosis(self.model, self.loss, self.info, self.augment, self.device)
        )
        self.clock.pause(time.monotonic() - begun)
        self.log.write("diagnosis", self.step, self.epoch, found, {"seconds": time.monotonic() - begun})
        shown = {k: found[k] for k in ("F2", "bias", "cosine", "variance", "normalizer_rmse") if k in found}
        self.screen.info(f"epoch {self.epoch:g}: " + ", ".join(f"{k} {v:.4f}" for k, v in shown.items()))

    def save(self, best: bool = False) -> None:
        """A checkpoint of everything."""
        begun = time.monotonic()
        state = self.state_dict()
        distributed_module.run_on_rank0(lambda: self._write(state, best))
        self.clock.pause(time.monotonic() - begun)

    def _write(self, state: dict[str, Any], best: bool) -> None:
        save_checkpoint(self.run, state, self.config.run.keep, best)

    def finish(self) -> None:
        """The encoder file, which marks the run as finished."""
        self.settle()
        distributed_module.run_on_rank0(self._write_encoder)
        self.seconds += self.clock.total()
        self.log.write("end", self.step, self.epoch, {}, {"seconds": self.seconds})
        self.screen.info(f"trained {self.epoch:g} epochs in {clock(self.seconds)}")

    def _write_encoder(self) -> None:
        self.task.finish(self.model, self.info)
        save_encoder(self.run.encoder_file, self.model.backbone, self.info)

    # ------------------------------------------------------------------------------------------------------ the state
    def state_dict(self) -> dict[str, Any]:
        """Everything that changes in training, of types that `torch.load(weights_only=True)` reads.

        All ranks call together where the loss's state is divided among them; the main one then has it whole. Verdicts on
        steps are no part of it: they are settled first.
        """
        self.settle()
        return {
            "version": __version__,
            "step": self.step,
            "model": self.model.state_dict(),
            "loss": whole_state(self.loss),
            "optimizer": self.optimizer.state_dict(),
            "loss_optimizers": [o.state_dict() for o in self.loss_optimizers],
            "keys": None if self.keys is None else self.keys.state_dict(),
            "scaler": self.scaler.state_dict(),
            "meters": {"sums": self.sums, "weight_max": self.weight_max, "counts": dict(self.counts)},
            "best": self.best,
            "bad": dict(self.bad),
            "manifest": self.manifest.fingerprint,
            "seconds": self.seconds + self.clock.total(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`.

        Raises:
            BadInput: it belongs to other images.
        """
        if state["manifest"] != self.manifest.fingerprint:
            raise BadInput(
                "the checkpoint was made on other images than the run's manifest lists; restore the run's own files"
            )
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.loss.load_state_dict(state["loss"])
        load_optimizer_state(self.optimizer, state["optimizer"])
        for optimizer, saved in zip(self.loss_optimizers, state["loss_optimizers"], strict=True):
            load_optimizer_state(optimizer, saved)
        if self.keys is not None:
            self.keys.load_state_dict(state["keys"])
        self.scaler.load_state_dict(state["scaler"])
        self.sums.copy_(state["meters"]["sums"])
        self.weight_max = state["meters"]["weight_max"].to(self.device)
        self.counts = dict(state["meters"]["counts"])
        self.best, self.bad, self.seconds = state["best"], dict(state["bad"]), state["seconds"]

    def start_from(self, source: RunFolder, state: dict[str, Any]) -> int:
        """Take weights and, for the images that both runs have, normalizers and temperatures from another run.

        Returns how many such images there are; 0 if the losses keep nothing of a sample in common.

        Raises:
            BadInput: the runs' models differ.
        """
        try:
            self.model.load_state_dict(state["model"])
        except RuntimeError:
            raise BadInput(
                f"{source.path} trained {source.config().model.model} and this run trains {self.config.model.model} "
                "(or the heads differ); --init-from needs the same --model and head"
            ) from None
        if self.keys is not None:
            self.keys = self._key_encoder()
            self._buffers = [*self.model.buffers(), *self.keys.buffers()]
        return self.task.carry(source, state["loss"], self.loss)
