"""From a job to a saved adapter: everything is checked first, then the run folder is made."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import asdict, dataclass, fields, replace
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen_local.adapters.lora import Adapter, Origin
from qwen_local.adapters.store import PEFT_WEIGHTS
from qwen_local.backends.base import Arrays, Backend, Setup
from qwen_local.backends.cost import Memory, estimate_memory
from qwen_local.backends.open import open_backend
from qwen_local.backends.quantization import check_quantization, choose_for
from qwen_local.backends.select import (
    Choice,
    Machine,
    choose,
    probe,
    resolve_dtype,
)
from qwen_local.cards.facts import card_facts, write_card
from qwen_local.console.log import LogFile, handled, talk
from qwen_local.console.signals import Stopped, Stops
from qwen_local.datasets.prepare import Prepared
from qwen_local.datasets.sources import locate
from qwen_local.datasets.tokenizer import ChatTokenizer
from qwen_local.errors import BackendError, DiskFullError, QwenLocalError
from qwen_local.files import json_bytes, replace_file, room_for
from qwen_local.job.schema import Draft, Job
from qwen_local.models.fingerprint import fingerprint
from qwen_local.models.source import fetch, find_model
from qwen_local.runs.checkpoints import step_name, steps_in
from qwen_local.runs.directory import (
    CHECKPOINTS,
    JOB,
    check_free,
    claim_folder,
    environment,
    locked,
    make_folder,
    run_folder,
)
from qwen_local.runs.events import METRICS, Metrics, cut_metrics, how_it_ended, read_metrics
from qwen_local.runs.state import Execution, Identity, Standing
from qwen_local.training import stopping
from qwen_local.training.advice import quantization_advice
from qwen_local.training.awake import keep_awake
from qwen_local.training.checkpoint_writer import Keeper
from qwen_local.training.child import supervised
from qwen_local.training.disk import LITTLE, check_disk, disk_need
from qwen_local.training.forecast import Forecast, describe, duration, forecast, how_far_off
from qwen_local.training.health import Health
from qwen_local.training.loop import ALL_STEPS, Data, Saving, train_loop
from qwen_local.training.preparation import (
    check_data_given,
    check_length,
    check_report_to,
    data_sources,
    data_told_too,
    make_setup,
    make_workload,
    prepare_data,
    trainable_parameters,
)
from qwen_local.training.progress import Progress
from qwen_local.training.resume import (
    TakenUp,
    as_yaml,
    check_same,
    find_run,
    leave_behind,
    resume_command,
    take_up,
)
from qwen_local.training.schedule import Schedule, make_schedule
from qwen_local.training.warm_up import rehearse

if TYPE_CHECKING:
    from qwen_local.training.tensorboard import TensorBoard

log = logging.getLogger("qwen_local")


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """What `train --json` prints."""

    run: str
    adapter: str
    backend: str
    device: str
    steps: int
    epochs: float
    train_loss: float
    first_eval_loss: float | None
    """Before the first step."""
    eval_loss: float | None
    """Of the last evaluation."""
    best_step: int
    best_eval_loss: float | None
    trainable_parameters: int
    total_parameters: int
    supervised_tokens: int
    tokens_per_second: float
    """Of all steps, whichever process did them."""
    peak_memory_bytes: int
    stopped_because: str
    restarts: int
    """How often the training process died and was begun again (`train.restarts`)."""

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return asdict(self)


def train(
    draft: Draft, *, backend: str, device: str, quiet: bool = False, resume: str | None = None
) -> Summary:
    """Run a job, or go on with its run.

    Args:
        draft: the job.
        backend: as `--backend`.
        device: as `--device`.
        quiet: say nothing on stderr.
        resume: None for a new run; see `resume.find_run` for what else it may be.

    Raises:
        InputError: something in job, data, model or machine cannot be used; nothing was written.
        RunBusyError: another process has the run's folder.
        CheckpointError: there is no good checkpoint to go on from.
        DivergedError: loss or gradient is not finite.
        OutOfMemoryError: memory does not hold a single row.
        DiskFullError: there is no room.
        Stopped: a signal ended the run, after a checkpoint if it was the first.
    """
    said = MemoryHandler(capacity=1000)  # until there is a run.log
    with talk(quiet=quiet), handled(said), ExitStack() as stack:
        machine = probe()
        choose(machine, backend, device)  # before anything is fetched: whether it can be at all
        taken_up, output = None, None
        if resume is not None:
            run = find_run(draft, resume)
            output = run.folder
            log.info("run: %s", output)
            stack.enter_context(locked(output))
            taken_up = take_up(run)
        ready = _prepare(draft, machine, backend, device, output, taken_up, quiet=quiet)
        if taken_up is not None and (done := _finished(ready)) is not None:
            log.info(
                "%s is finished already, after %d steps: %s",
                ready.output,
                done.steps,
                done.stopped_because,
            )
            return done
        engine = open_backend(ready.choice, ready.setup)
        with room_for(ready.output / JOB, LITTLE):
            if resume is None:
                make_folder(ready.output)
                stack.enter_context(locked(ready.output))
                claim_folder(ready.output, ready.job)
            else:
                if taken_up is not None:
                    engine.load_state(taken_up.saved.state)
                    leave_behind(run, taken_up)
                replace_file(ready.output / JOB, ready.job.to_yaml().encode())
            _describe(ready, machine)
            stack.enter_context(_log_file(ready.output / "run.log", said.buffer))
        stack.enter_context(keep_awake(machine.system))
        return _train(ready, engine, quiet=quiet)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Ready:
    """A run of which everything is known and checked."""

    job: Job
    choice: Choice
    setup: Setup
    prepared: Prepared
    schedule: Schedule
    trainable: int
    memory: Memory
    """The planned need."""
    output: Path
    identity: Identity
    start: Standing
    taken_up: TakenUp | None
    changed: Mapping[str, tuple[Any, Any]]
    """What has changed since the run began: (before, now) by key."""


def _prepare(
    draft: Draft,
    machine: Machine,
    backend: str,
    device: str,
    resumed: Path | None,
    taken_up: TakenUp | None,
    *,
    quiet: bool,
) -> _Ready:
    """Check a job and read its data; nothing is written and no weight is loaded.

    Args:
        draft: the job.
        machine: the present one.
        backend: as `--backend`.
        device: as `--device`.
        resumed: the folder of the run that is gone on with, None for a new one.
        taken_up: what it is gone on from, None for its beginning.
        quiet: show no progress.

    Raises:
        InputError: something cannot be used, or makes it another run.
    """
    saved = None if taken_up is None else taken_up.saved
    commit = None if saved is None else saved.identity.base_commit
    with data_told_too(draft):
        source = find_model(draft.model.name, draft.model.revision)
        if source.kind == "hub" and source.revision is None:
            source = replace(source, revision=commit)  # and not what is newest by now
        architecture = source.architecture(download=True)
    job = draft.complete(architecture.parameters())
    before = None if saved is None else saved.execution
    choice = choose_for(machine, backend, device, architecture, Origin())
    if before is not None and backend == "auto" and _can_run(machine, before.backend, device):
        choice = choose(machine, before.backend, device)
        choice = replace(choice, reason="the run was begun on it")
    check_quantization(machine, choice, source.name, architecture, job.model.quantization)
    output = run_folder(job) if resumed is None else resumed
    if resumed is None:
        check_free(output)
    job = job.model_copy(update={"output": str(output)})
    check_data_given(draft, job)
    check_length(job, architecture)
    check_report_to(job)
    trainable = trainable_parameters(job, architecture)
    locate(*data_sources(job))  # before gigabytes of weights are fetched
    model = fetch(source)
    tokenizer = ChatTokenizer.load(model.folder)
    tokenizer.check_fits(architecture.vocabulary, job.model.name)
    prepared = prepare_data(job, tokenizer, quiet=quiet)
    identity = Identity(
        job=job.model_dump(mode="json"),
        rows=prepared.train.sha256,
        eval_rows=None if prepared.eval is None else prepared.eval.sha256,
        sources=tuple((s.name, s.sha256 or s.commit) for s in prepared.report.sources),
        base=fingerprint(model.folder),
        base_commit=model.commit,
    )
    changed = {} if saved is None else check_same(draft, saved.identity, identity)
    dtype, dtype_reason = resolve_dtype(machine, choice, job.model.dtype)
    available = machine.bytes_on(choice.device)
    workload = make_workload(
        job, machine, choice, prepared, trainable=trainable, rows=len(prepared.train)
    )
    fitted = make_setup(job, model, choice, dtype, workload)
    setup = fitted.setup
    if before is not None and (before.backend, before.device, before.available) == (
        choice.backend,
        choice.device,
        available,
    ):
        if "train.micro_batch_tokens" not in changed:
            setup = replace(setup, micro_batch_tokens=before.micro_batch_tokens)
        if "train.gradient_checkpointing" not in changed:
            setup = replace(setup, gradient_checkpointing=before.gradient_checkpointing)
    told = supervised()
    if told is not None and told.micro_batch_tokens is not None:
        budget = min(setup.micro_batch_tokens, told.micro_batch_tokens)
        setup = replace(setup, micro_batch_tokens=budget)
    advice = quantization_advice(setup, workload)
    log.info("backend: %s on the %s (%s)", choice.backend, choice.device, choice.reason)
    log.info("dtype: %s (%s)", dtype, dtype_reason)
    said = f"{setup.micro_batch_tokens:,} tokens computed at once, as memory has shown"
    log.info("memory: %s", fitted.reason if setup == fitted.setup else said)
    if advice is not None:
        log.info("advice: %s", advice)
    schedule = make_schedule(
        job.train,
        rows=len(prepared.train),
        eval_rows=0 if prepared.eval is None else len(prepared.eval),
    )
    if resumed is None:  # what a run holds already is there for the next part of it
        check_disk(output, disk_need(trainable, keep=job.train.keep, steps=schedule.steps))
    return _Ready(
        job=job,
        choice=choice,
        setup=setup,
        prepared=prepared,
        schedule=schedule,
        trainable=trainable,
        memory=estimate_memory(setup, workload),
        output=output,
        identity=identity,
        start=Standing() if saved is None else saved.standing,
        taken_up=taken_up,
        changed=changed,
    )


def _can_run(machine: Machine, backend: str, device: str) -> bool:
    """Whether `--backend auto` may take the engine that a run was begun on."""
    try:
        choose(machine, backend, device)
    except BackendError:
        return False
    return True


def _finished(ready: _Ready) -> Summary | None:
    """How a run ended that has nothing left to do; None where it has."""
    start, spec = ready.start, ready.job.train.early_stopping
    done = start.step >= ready.schedule.steps or (
        spec is not None and stopping.exhausted(start.patience, spec)
    )
    adapter = ready.output / "adapter"
    if not done or not (adapter / "peft" / PEFT_WEIGHTS).exists():
        return None
    last = how_it_ended(ready.output / METRICS)
    names = {field.name for field in fields(Summary)}
    if last is None or last.keys() != names or last["steps"] != start.step:
        return None
    return replace(Summary(**last), run=str(ready.output), adapter=str(adapter))


def _describe(ready: _Ready, machine: Machine) -> None:
    """Write the files that say what is run, on what."""
    found = environment(machine, ready.choice, ready.setup, ready.setup.model.commit)
    replace_file(ready.output / "environment.json", json_bytes(found))
    replace_file(ready.output / "data.json", json_bytes(ready.prepared.report.to_json()))


def _train(ready: _Ready, engine: Backend, *, quiet: bool) -> Summary:
    """The run itself, into an existing folder."""
    job, setup, prepared, schedule = ready.job, ready.setup, ready.prepared, ready.schedule
    start, output, choice = ready.start, ready.output, ready.choice
    _say_start(ready)
    report = prepared.report
    origin = Origin(
        commit=setup.model.commit,
        backend=choice.backend,
        quantization=setup.quantization,
        template_sha256=report.template_sha256,
        thinking=report.thinking,
        enable_thinking=report.enable_thinking,
        max_length=report.max_length,
    )
    layers = setup.model.architecture.layers

    def adapter_of(arrays: Arrays) -> Adapter:
        return Adapter(
            base=job.model.name, lora=job.lora, layers=layers, arrays=arrays, origin=origin
        )

    data = Data(
        train=prepared.train,
        evaluation=prepared.eval,
        train_places=prepared.train_places,
        eval_places=prepared.eval_places,
    )
    told = 0
    if (output / METRICS).exists():
        until = -1 if ready.taken_up is None else start.step
        told = cut_metrics(output / METRICS, until, start.evaluated_step)
    if told < start.step:
        log.info(
            "warning: %s is damaged: of the steps %d to %d nothing is told any more",
            output / METRICS,
            told + 1,
            start.step,
        )
    with (
        Metrics(output / METRICS, _board(job, output, start.step)) as metrics,
        Progress(schedule.steps, quiet=quiet, done=start.step) as progress,
        Stops(quiet=quiet) as stops,
    ):
        _note_start(ready, metrics)
        execution = Execution(
            backend=choice.backend,
            device=choice.device,
            dtype=setup.dtype,
            available=ready.memory.available,
            micro_batch_tokens=engine.micro_batch_tokens,
            gradient_checkpointing=setup.gradient_checkpointing,
        )
        keeper = Keeper(
            output, engine, adapter_of, ready.identity, execution, metrics, keep=job.train.keep
        )
        keeper.take_over(start)
        try:
            coming = _rehearse(ready, engine, data, metrics)
            now, because = train_loop(
                engine,
                data,
                schedule,
                start,
                batch_size=job.train.batch_size,
                seed=job.train.seed,
                early_stopping=job.train.early_stopping,
                metrics=metrics,
                progress=progress,
                health=Health(setup.model.architecture.vocabulary, start.health or None),
                saving=Saving(every=job.train.save_every, save=keeper.save),
                stops=stops,
            )
        except (QwenLocalError, OSError, Stopped) as error:
            with suppress(OSError, QwenLocalError):
                metrics.write("failed", error=str(error).partition("\n")[0])
            if good := steps_in(output / CHECKPOINTS):
                log.info("the last checkpoint is that of step %d", good[0])
            if good and isinstance(error, OSError | DiskFullError | Stopped):
                log.info("to go on: %s", resume_command(output))
            raise
        peak = engine.peak_memory_bytes()
        summary = _summary(ready, now, because, peak)
        metrics.write("end", **summary.to_json())
        if stops.signum is not None and because == stops.name:
            _say_stopped(ready, now, because)
            raise Stopped(stops.signum)
    if coming is not None and now.step > start.step:
        _say_how_far_off(ready, coming, now, peak)
        _say_padding(output)
    _describe_adapter(ready)
    _say_outcome(start, now, because, output)
    return summary


def _rehearse(ready: _Ready, engine: Backend, data: Data, metrics: Metrics) -> Forecast | None:
    """Try the largest micro-batches, and say how long the run will take; None at its end."""
    batch_size, start = ready.job.train.batch_size, ready.start
    if start.step >= ready.schedule.steps:
        return None
    tried = rehearse(engine, data, metrics, start.step, batch_size=batch_size)
    coming = forecast(
        ready.schedule,
        data.train,
        data.evaluation,
        batch_size=batch_size,
        seed=ready.job.train.seed,
        budget=engine.micro_batch_tokens,
        layout=engine.layout,
        seconds=tried.seconds,
        tokens=tried.tokens,
        done=start.step,
    )
    metrics.write(
        "forecast",
        step=start.step,
        training_seconds=coming.training_seconds,
        evaluation_seconds=coming.evaluation_seconds,
        memory_bytes=ready.memory.peak,
        peak_memory_bytes=tried.peak_memory_bytes,
    )
    log.info(
        "time: %s; memory: %.2f GB planned, %.2f after a trial of the longest rows",
        describe(coming),
        ready.memory.peak / 1e9,
        tried.peak_memory_bytes / 1e9,
    )
    return coming


def _note_start(ready: _Ready, metrics: Metrics) -> None:
    """The event that a run, or a part of it, begins with."""
    told = supervised()
    how = {
        "died_of": None if told is None else told.died_of,
        "backend": ready.choice.backend,
        "device": ready.choice.device,
        "dtype": ready.setup.dtype,
        "micro_batch_tokens": ready.setup.micro_batch_tokens,
        "steps": ready.schedule.steps,
    }
    if ready.taken_up is None:
        metrics.write(
            "start",
            **how,
            rows=len(ready.prepared.train),
            trainable_parameters=ready.trainable,
        )
        return
    metrics.write(
        "resume", step=ready.start.step, **how, changed=ready.changed, lost=ready.taken_up.lost
    )


def _say_start(ready: _Ready) -> None:
    total = ready.setup.model.architecture.parameters() + ready.trainable
    train, schedule = ready.prepared.train, ready.schedule
    log.info("trainable: %s of %s parameters", f"{ready.trainable:,}", f"{total:,}")
    log.info("data: %s", ready.prepared.report.describe())
    log.info(
        "steps: %s, warm-up %s%s; %s of %s tokens supervised",
        f"{schedule.steps:,}",
        f"{schedule.warmup:,}",
        f", an evaluation every {schedule.eval_every:,}" if schedule.evaluations else "",
        f"{train.supervised:,}",
        f"{train.tokens:,}",
    )
    if ready.taken_up is None:
        return
    log.info("resumed: after step %s of %s", f"{ready.start.step:,}", f"{schedule.steps:,}")
    for key, (was, now) in ready.changed.items():
        log.info("changed: %s was %s, is %s", key, as_yaml(was), as_yaml(now))
    if {"train.epochs", "train.steps"} & ready.changed.keys():
        log.info("the learning rate follows the new number of steps from here on")
    before = ready.taken_up.saved.execution
    if (before.backend, before.dtype) != (ready.choice.backend, ready.setup.dtype):
        log.info(
            "begun with %s in %s, goes on with %s in %s: the curve agrees up to rounding",
            before.backend,
            before.dtype,
            ready.choice.backend,
            ready.setup.dtype,
        )


def _summary(ready: _Ready, now: Standing, because: str, peak: int) -> Summary:
    told = supervised()
    return Summary(
        run=str(ready.output),
        adapter=str(ready.output / "adapter"),
        backend=ready.choice.backend,
        device=ready.choice.device,
        steps=now.step,
        epochs=now.step / ready.schedule.steps_per_epoch,
        train_loss=now.loss_sum / max(1, now.supervised_tokens),
        first_eval_loss=now.first_eval_loss,
        eval_loss=now.eval_loss,
        best_step=now.best_step,
        best_eval_loss=now.best_eval_loss,
        trainable_parameters=ready.trainable,
        total_parameters=ready.setup.model.architecture.parameters() + ready.trainable,
        supervised_tokens=now.supervised_tokens,
        tokens_per_second=now.tokens / now.seconds if now.seconds else 0.0,
        peak_memory_bytes=peak,
        stopped_because=because,
        restarts=0 if told is None else told.restarts,
    )


def _say_stopped(ready: _Ready, now: Standing, because: str) -> None:
    """Where the run stands and how to go on with it."""
    log.info("stopped by %s after step %s of %s", because, now.step, ready.schedule.steps)
    if not (ready.output / "adapter").exists() and now.step:
        log.info(
            "no adapter is the best yet; the last is in %s",
            ready.output / CHECKPOINTS / step_name(now.step),
        )
    log.info("to go on: %s", resume_command(ready.output))


def _board(job: Job, output: Path, step: int) -> TensorBoard | None:
    """Imports tensorboard only where the job asks for it."""
    if "tensorboard" not in job.train.report_to:
        return None
    from qwen_local.training.tensorboard import TensorBoard

    return TensorBoard(output / "tensorboard", after=step)


def _describe_adapter(ready: _Ready) -> None:
    """Write the model card beside the adapter. No run fails because of its description."""
    folder = ready.output / "adapter"
    if not folder.exists():
        return
    try:
        write_card(folder, card_facts(ready.output, "adapter", base=ready.setup.model))
    except Exception as error:  # whatever it is: the adapter is there, and whole
        log.info("warning: %s has no model card: %s", folder, error)


def _say_outcome(start: Standing, now: Standing, because: str, output: Path) -> None:
    took = duration(_seconds(now))
    if start.step:
        took += f", {duration(_seconds(now) - _seconds(start))} of them now"
    evaluated = ""
    if now.best_eval_loss is not None and now.first_eval_loss is not None:
        evaluated = (
            f"; eval loss {now.first_eval_loss:.4f} -> {now.best_eval_loss:.4f}, "
            f"best at step {now.best_step}"
        )
        if now.best_eval_loss >= now.first_eval_loss:
            evaluated += ", which is no better than before training"
    if because != ALL_STEPS:
        log.info("%s", because)
    log.info(
        "done in %s: loss of the first step %.4f, of the last %.4f%s",
        took,
        now.first_loss,
        now.last_loss,
        evaluated,
    )
    log.info("adapter: %s (PEFT), %s (mlx-lm)", output / "adapter/peft", output / "adapter/mlx")
    log.info("next: qwen-local chat --adapter %s", shlex.quote(str(output)))


def _seconds(standing: Standing) -> float:
    """Of training and evaluation, up to there."""
    return standing.seconds + standing.evaluation_seconds


def _say_how_far_off(ready: _Ready, coming: Forecast, now: Standing, peak: int) -> None:
    """What was planned beside what it came to, of the steps that this process did."""
    start = ready.start
    done = replace(coming, steps=now.step - start.step)
    if now.step < ready.schedule.steps and coming.evaluations:  # it stopped early
        share = (now.step - start.step) / coming.steps
        done = replace(done, evaluations=round(coming.evaluations * share))
    said = how_far_off(
        done,
        seconds=_seconds(now) - _seconds(start),
        planned_bytes=ready.memory.peak,
        peak_bytes=peak,
    )
    log.info("%s", said)


def _say_padding(output: Path) -> None:
    """How much of what the whole run computed was padding, and how much of the rest was learned."""
    tokens, supervised, computed = 0, 0, 0
    for event in read_metrics(output / METRICS, "train"):
        tokens += event["tokens"]
        supervised += event["supervised_tokens"]
        computed += event["computed_tokens"]
    padding = f"; padding: {1 - tokens / computed:.1%} of the positions computed"
    said = padding if computed > tokens else ""
    log.info("supervised: %.0f %% of the tokens%s", 100 * supervised / tokens, said)


def _log_file(path: Path, before: list[logging.LogRecord]) -> AbstractContextManager[None]:
    """What is said, and what was said before, goes to run.log with its time."""
    handler = LogFile(path)
    for record in before:
        handler.handle(record)
    return handled(handler)
