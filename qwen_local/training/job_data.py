"""The data of a job: where they come from, and the rows that they make."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow as pa  # type: ignore[import-untyped]

from qwen_local.datasets.column_map import resolve_format
from qwen_local.datasets.prepare import Prepared, prepare
from qwen_local.datasets.row_builder import TokenizeConfig
from qwen_local.datasets.sources import SourceSpec, locate, looks_local
from qwen_local.datasets.tokenizer import ChatTokenizer
from qwen_local.embedded import SAMPLE_DATA, TINY_MODEL, sample_data_path
from qwen_local.errors import DatasetError, JobError, ModelError
from qwen_local.job.schema import DataSpec, Draft, EvalSource, Job, TrainSource


def check_data_given(draft: Draft, job: Job) -> None:
    """Check that the job sets its data: the sample data are the default for the tiny model only.

    Raises:
        JobError: it does not.
    """
    if job.model.name != TINY_MODEL and not draft.sets("data.train"):
        raise JobError.at(
            "data.train",
            f"expected the data to train {job.model.name} on; it is not given",
            "pass `data`, or write data: {train: ...} into the job; "
            f"{SAMPLE_DATA} is the sample data",
        )


@contextmanager
def with_data_faults(draft: Draft) -> Iterator[None]:
    """Add the faults of the job's data to a ModelError that is raised within the `with`.

    Only local data are checked: an unreachable hub may be the reason for the ModelError.
    """
    try:
        yield
    except ModelError as error:
        train, evaluation = (
            [source for source in sources if looks_local(Path(source.name))]
            for sources in data_sources(draft.job)  # no preset changes the data
        )
        try:
            locate(train, evaluation)
        except DatasetError as more:
            raise ModelError([*error.faults, *more.faults]) from None
        raise


def data_sources(job: Job) -> tuple[list[SourceSpec], list[SourceSpec]]:
    """Return the (training, evaluation) sources of a job.

    The sample data are named by their file. A source without format and columns has those of the
    data section.
    """
    return _source_specs(job.data, job.data.train), _source_specs(job.data, job.data.eval)


def _source_specs(data: DataSpec, given: str | Sequence[EvalSource] | None) -> list[SourceSpec]:
    sample = {SAMPLE_DATA: str(sample_data_path() / "train.jsonl")}
    sources = [EvalSource(name=given)] if isinstance(given, str) else given or ()
    specs = []
    for source in sources:
        own = source if source.format is not None or source.columns is not None else data
        columns = own.columns or {}
        limits = [limit for limit in (source.limit, data.limit) if limit is not None]
        specs.append(
            SourceSpec(
                name=sample.get(source.name, source.name),
                weight=source.weight if isinstance(source, TrainSource) else 1.0,
                format=resolve_format(columns, own.format or "auto"),
                columns=columns,
                limit=min(limits, default=None),
            )
        )
    return specs


def tokenize_config(job: Job, tokenizer: ChatTokenizer) -> TokenizeConfig:
    """Return the tokenizer and the options that turn a job's records into rows."""
    return TokenizeConfig(
        tokenizer=tokenizer,
        max_length=job.data.max_length,
        overlong=job.data.overlong,
        train_on=job.data.train_on,
        thinking=job.data.thinking,
    )


def prepare_data(job: Job, tokenizer: ChatTokenizer, *, quiet: bool = True) -> Prepared:
    """Read and tokenize the rows of a job.

    Args:
        job: complete.
        tokenizer: of its model.
        quiet: True to show no progress.
    """
    train, evaluation = data_sources(job)
    prepared = prepare(
        tokenize_config(job, tokenizer),
        train=train,
        eval=evaluation,
        eval_fraction=job.data.eval_fraction,
        seed=job.train.seed,
        quiet=quiet,
    )
    _release_memory()
    return prepared


def _release_memory() -> None:
    """Return freed memory to the system; the allocators would keep it during the whole run."""
    pa.default_memory_pool().release_unused()
    if sys.platform == "linux":
        with suppress(AttributeError):  # a C library without malloc_trim
            ctypes.CDLL(None).malloc_trim(0)
