"""Lenient view of a run's data.json, whose content `datasets/report.py` writes."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class _Lenient(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)


class SetCounts(_Lenient):
    """Size of a set of rows."""

    rows: int
    tokens: int
    supervised_tokens: int


class DataSource(_Lenient):
    """A file, or a split of a data set on the hub."""

    name: str
    sha256: str | None = None
    """Hash of a file."""
    commit: str | None = None
    """Commit of a data set on the hub."""
    records: int
    usable: SetCounts
    dropped: dict[str, int] = Field(default_factory=dict)
    """Rows left out, by reason."""
    cut: int = 0
    """Rows that were truncated."""


class RunData(_Lenient):
    """Sources of a run, and its training and evaluation sets."""

    sources: list[DataSource]
    train: SetCounts
    eval: SetCounts | None = None
    template_sha256: str | None = None
