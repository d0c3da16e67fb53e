"""From a job to a saved adapter: everything is checked first, then the run folder is made."""

from __future__ import annotations

import logging
import shlex
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen_local.adapters.lora import Adapter, Origin
from qwen_local.adapters.store import save_adapter
from qwen_local.backends.base import Arrays, Backend, Setup
from qwen_local.backends.probe import in_a_line
from qwen_local.backends.quantisation import check_quantization, choose_for
from qwen_local.backends.select import (
    Choice,
    DType,
    choose,
    open_backend,
    probe,
    resolve_dtype,
)
from qwen_local.datasets.prepare import Prepared, prepare
from qwen_local.datasets.sources import locate
from qwen_local.datasets.tokenizer import ChatTokenizer
from qwen_local.embedded import SAMPLE_DATA, TINY_MODEL, sample_data_path
from qwen_local.errors import JobError
from qwen_local.files import write_json
from qwen_local.job import Draft, Job
from qwen_local.models.architecture import Architecture
from qwen_local.models.source import ModelFiles, fetch, find_model
from qwen_local.talk import handled, talk
from qwen_local.training.advice import quantization_advice
from qwen_local.training.awake import keep_awake
from qwen_local.training.loop import Outcome, train_loop
from qwen_local.training.memory import fitting_micro_batch
from qwen_local.training.metrics import Metrics
from qwen_local.training.progress import Progress
from qwen_local.training.run_directory import check_free, claim_folder, environment, run_folder
from qwen_local.training.schedule import make_schedule

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
    eval_loss: float | None
    best_step: int
    best_eval_loss: float | None
    trainable_parameters: int
    total_parameters: int
    supervised_tokens: int
    tokens_per_second: float
    peak_memory_bytes: int
    stopped_because: str

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return asdict(self)


def train(draft: Draft, *, backend: str, device: str, quiet: bool = False) -> Summary:
    """Run a job.

    Raises:
        InputError: something in job, data, model or machine cannot be used; nothing was written.
        DivergedError: loss or gradient is not finite.
    """
    machine = probe()
    choose(machine, backend, device)  # before anything is fetched: whether it can be at all
    source = find_model(draft.model.name, draft.model.revision)
    architecture = source.architecture(download=True)
    job = draft.complete(architecture.parameters())
    choice = choose_for(machine, backend, device, architecture, Origin())
    check_quantization(machine, choice, source.name, architecture, job.model.quantization)
    output = run_folder(job)
    check_free(output)
    check_data_given(draft, job)
    check_length(job, architecture)
    check_report_to(job)
    trainable = trainable_parameters(job, architecture)
    locate(*data_sources(job))  # before gigabytes of weights are fetched
    model = fetch(source)
    tokenizer = ChatTokenizer.load(model.folder)
    tokenizer.check_fits(architecture.vocabulary, job.model.name)
    prepared = prepare_data(job, tokenizer)
    dtype, dtype_reason = resolve_dtype(machine, choice, job.model.dtype)
    available = machine.bytes_on(choice.device)
    setup = make_setup(job, model, choice, dtype, trainable=trainable, available=available)
    longest = int(prepared.train.lengths_R.max())
    advice = quantization_advice(
        setup, engine=choice.backend, trainable=trainable, longest=longest, available=available
    )
    said = MemoryHandler(capacity=1000)  # until there is a run.log
    with talk(quiet=quiet), handled(said):
        log.info("backend: %s on the %s (%s)", choice.backend, choice.device, choice.reason)
        log.info("dtype: %s (%s)", dtype, dtype_reason)
        log.info("computed at once: %s tokens", f"{setup.micro_batch_tokens:,}")
        if advice is not None:
            log.info("advice: %s", advice)
        engine = open_backend(choice, setup)
        claim_folder(output, job)
        write_json(output / "environment.json", environment(machine, choice, setup, model.commit))
        write_json(output / "data.json", prepared.report.to_json())
        with _log_file(output / "run.log", said.buffer), keep_awake(machine.system):
            return _train(job, choice, setup, engine, prepared, trainable, output, quiet=quiet)


def make_setup(
    job: Job, model: ModelFiles, choice: Choice, dtype: DType, *, trainable: int, available: int
) -> Setup:
    """What the engine must know of a job.

    Args:
        job: complete.
        model: its files; a plan has none but the architecture.
        choice: engine and device.
        dtype: of the frozen model.
        trainable: adapter parameters.
        available: bytes of the device.
    """
    setup = Setup(
        model=model,
        lora=job.lora,
        device=choice.device,
        dtype=dtype,
        quantization=job.model.quantization,
        seed=job.train.seed,
        weight_decay=job.train.weight_decay,
        max_grad_norm=job.train.max_grad_norm,
        gradient_checkpointing=job.train.gradient_checkpointing,
    )
    wanted = job.train.micro_batch_tokens
    if wanted == "auto":
        wanted = fitting_micro_batch(setup, trainable=trainable, available=available)
    return replace(setup, micro_batch_tokens=wanted)


def trainable_parameters(job: Job, architecture: Architecture) -> int:
    """Parameters of the job's adapter on this model.

    Raises:
        JobError: `lora.layers` asks for more blocks than the model has.
    """
    blocks = len(job.lora.blocks(architecture.layers))
    return architecture.lora_parameters(job.lora.rank, job.lora.target_names, blocks)


def check_length(job: Job, architecture: Architecture) -> None:
    """Refuse rows longer than the model's positions."""
    if job.data.max_length > architecture.positions:
        raise JobError.at(
            "data.max_length",
            f"expected at most the {architecture.positions} positions of {job.model.name}; "
            f"found {job.data.max_length}",
            f"set it to {architecture.positions} or less",
        )


def check_report_to(job: Job) -> None:
    """Refuse a tensorboard that is installed but cannot be imported, as after a clash of versions.

    Raises:
        JobError: with the words of the import.
    """
    if "tensorboard" not in job.train.report_to:
        return
    try:
        import qwen_local.training.tensorboard  # noqa: F401
    except Exception as error:  # whatever a broken installation raises
        raise JobError.at(
            "train.report_to",
            f"tensorboard cannot be imported: {in_a_line(error)}",
            "pip install --upgrade tensorboard protobuf, or set train.report_to=[]",
        ) from None


def check_data_given(draft: Draft, job: Job) -> None:
    """Refuse the sample data where nobody asked for it: it is there for the tiny model."""
    if job.model.name != TINY_MODEL and not draft.sets("data.train"):
        raise JobError.at(
            "data.train",
            f"expected the data to train {job.model.name} on; it is not given",
            "pass --data, or write data: {train: ...} into the job; "
            f"{SAMPLE_DATA} is the sample data",
        )


def data_sources(job: Job) -> tuple[str, str | None]:
    """(train, eval) as the reader knows them: the sample data by its file."""
    sample = {SAMPLE_DATA: str(sample_data_path() / "train.jsonl")}
    train, evaluation = job.data.train, job.data.eval
    return sample.get(train, train), evaluation and sample.get(evaluation, evaluation)


def prepare_data(job: Job, tokenizer: ChatTokenizer) -> Prepared:
    """The rows of a job."""
    train, evaluation = data_sources(job)
    return prepare(
        tokenizer,
        train=train,
        eval=evaluation,
        eval_fraction=job.data.eval_fraction,
        format=job.data.format,
        max_length=job.data.max_length,
        overlong=job.data.overlong,
        limit=job.data.limit,
        train_on=job.data.train_on,
        seed=job.train.seed,
    )


def _train(
    job: Job,
    choice: Choice,
    setup: Setup,
    engine: Backend,
    prepared: Prepared,
    trainable: int,
    output: Path,
    *,
    quiet: bool,
) -> Summary:
    """The run itself, into an existing folder."""
    architecture = setup.model.architecture
    total = architecture.parameters() + trainable
    schedule = make_schedule(
        job.train,
        rows=len(prepared.train),
        eval_rows=0 if prepared.eval is None else len(prepared.eval),
    )
    log.info("trainable: %s of %s parameters", f"{trainable:,}", f"{total:,}")
    log.info("data: %s", prepared.report.describe())
    log.info(
        "steps: %s, warm-up %s; %s of %s tokens supervised",
        f"{schedule.steps:,}",
        f"{schedule.warmup:,}",
        f"{prepared.train.supervised:,}",
        f"{prepared.train.tokens:,}",
    )

    kept: list[int] = []
    origin = Origin(
        commit=setup.model.commit, backend=choice.backend, quantization=setup.quantization
    )

    def keep(step: int, arrays: Arrays) -> None:
        save_adapter(
            Adapter(
                base=job.model.name,
                lora=job.lora,
                layers=architecture.layers,
                arrays=arrays,
                origin=origin,
            ),
            output / "adapter",
        )
        metrics.write("adapter", step=step)
        kept.append(step)

    with (
        Metrics(output / "metrics.jsonl", _board(job, output)) as metrics,
        Progress(schedule.steps, quiet=quiet) as progress,
    ):
        metrics.write(
            "start",
            backend=choice.backend,
            device=choice.device,
            steps=schedule.steps,
            rows=len(prepared.train),
            trainable_parameters=trainable,
        )
        try:
            outcome = train_loop(
                engine,
                prepared.train,
                prepared.eval,
                schedule,
                batch_size=job.train.batch_size,
                seed=job.train.seed,
                metrics=metrics,
                progress=progress,
                keep=keep,
            )
        except KeyboardInterrupt:
            best = f"the best, of step {kept[-1]}, is in {output / 'adapter'}" if kept else "none"
            log.info("stopped by hand; adapter saved so far: %s", best)
            raise
        summary = Summary(
            run=str(output),
            adapter=str(output / "adapter"),
            backend=choice.backend,
            device=choice.device,
            steps=outcome.steps,
            epochs=outcome.steps / schedule.steps_per_epoch,
            train_loss=outcome.train_loss,
            eval_loss=outcome.eval_loss,
            best_step=outcome.best_step,
            best_eval_loss=outcome.best_eval_loss,
            trainable_parameters=trainable,
            total_parameters=total,
            supervised_tokens=outcome.supervised_tokens,
            tokens_per_second=outcome.tokens / outcome.seconds,
            peak_memory_bytes=engine.peak_memory_bytes(),
            stopped_because="all steps done",
        )
        metrics.write("end", **summary.to_json())
    _say_outcome(outcome, output)
    return summary


def _board(job: Job, output: Path) -> TensorBoard | None:
    """Imports tensorboard only where the job asks for it."""
    if "tensorboard" not in job.train.report_to:
        return None
    from qwen_local.training.tensorboard import TensorBoard

    return TensorBoard(output / "tensorboard")


def _say_outcome(outcome: Outcome, output: Path) -> None:
    evaluated = ""
    if outcome.best_eval_loss is not None:
        evaluated = (
            f"; eval loss {outcome.first_eval_loss:.4f} -> {outcome.best_eval_loss:.4f}, "
            f"best at step {outcome.best_step}"
        )
        if outcome.first_eval_loss is not None and outcome.best_eval_loss > outcome.first_eval_loss:
            evaluated += ", which is worse than before training"
    log.info(
        "done in %.0f s: loss of the first step %.4f, of the last %.4f%s",
        outcome.seconds,
        outcome.first_loss,
        outcome.last_loss,
        evaluated,
    )
    log.info("adapter: %s (PEFT), %s (mlx-lm)", output / "adapter/peft", output / "adapter/mlx")
    log.info("next: qwen-local chat --adapter %s", shlex.quote(str(output)))


def _log_file(path: Path, before: list[logging.LogRecord]) -> AbstractContextManager[None]:
    """What is said, and what was said before, goes to run.log with its time."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    for record in before:
        handler.handle(record)
    return handled(handler)
