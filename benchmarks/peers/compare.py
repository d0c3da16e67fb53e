"""From what the processes of a comparison reported to figures, and whether these mean anything."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.peers.work import FIRST, WARM_UP

Report = Mapping[str, Any]
"""A `benchmarks.peers.work.Report` as it is read back."""
Rounds = Sequence[Mapping[str, Report]]
"""The reports of each round, by tool."""

OURS = {
    "trl": "ours-torch",
    "llama-factory": "ours-torch",
    "unsloth": "ours-torch",
    "mlx-lm": "ours-mlx",
}
"""What each peer is measured against: the engine on the same framework."""
APART = {"float32": 1e-3, "bfloat16": 1e-2}
"""How far, relative to ours, the losses of the first steps may lie apart."""
APART_MLX_LM = 0.05
"""It learns one pad token of every row besides."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """One tool in one comparison: medians over the rounds."""

    examples_per_second: float
    supervised_per_second: float
    tokens_per_second: float
    peak_memory_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Ratio:
    """Ours to a peer's, round by round."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, ours: Sequence[float], peers: Sequence[float]) -> Ratio:
        """Of figures of the same rounds."""
        each = [a / b for a, b in zip(ours, peers, strict=True)]
        return cls(median=statistics.median(each), least=min(each), most=max(each))


def seconds(report: Report) -> float:
    """From the end of the warm-up to the end of the last step."""
    ends = report["ends"]
    return float(ends[-1] - ends[WARM_UP - 1])


def measured(reports: Sequence[Report], rows: int, learned: int, tokens: int) -> Measured:
    """The figures of a tool.

    Args:
        reports: one of each round.
        rows: of the counted steps.
        learned: supervised tokens among them.
        tokens: all their tokens.
    """
    took = [seconds(report) for report in reports]
    return Measured(
        examples_per_second=statistics.median(rows / s for s in took),
        supervised_per_second=statistics.median(learned / s for s in took),
        tokens_per_second=statistics.median(tokens / s for s in took),
        peak_memory_bytes=round(statistics.median(r["peak_memory_bytes"] for r in reports)),
    )


def faults(ours: Report, report: Report, *, peer: str, dtype: str) -> list[str]:
    """Why the two did not do the same work; empty where they did.

    Both must have learned as many tokens at every step, of as many where the peer tells it, and at
    the first steps lost as much.
    """
    found = []
    for key, name in (("supervised", "tokens learned"), ("tokens", "tokens")):
        mine, its = ours[key], report[key]
        if its is None or list(mine) == list(its):
            continue
        at = next((i for i, (a, b) in enumerate(zip(mine, its, strict=False)) if a != b), None)
        step = min(len(mine), len(its)) if at is None else at
        said = [", ".join(map(str, counts[step : step + 3])) or "none" for counts in (mine, its)]
        found.append(f"{name} from step {step + 1} on: {peer} {said[1]}; ours {said[0]}")
    bound = APART_MLX_LM if peer == "mlx-lm" else APART[dtype]
    for step in range(FIRST):
        losses = [report["losses"][step : step + 1] for report in (ours, report)]
        if not all(losses):
            found.append(f"{peer} or ours told no loss of step {step + 1}")
            continue
        a, b = losses[0][0], losses[1][0]
        if not (a and abs(a - b) <= bound * abs(a)):  # so that NaN is a fault, and nothing at all
            found.append(
                f"{peer}'s loss of step {step + 1} is {b:.5f}, ours {a:.5f}: "
                f"more than {bound:g} of it apart"
            )
    return found


def comparison(rounds: Rounds, *, batch_size: int, dtype: str) -> dict[str, Any]:
    """All figures of one comparison.

    Args:
        rounds: the reports; the same tools in each.
        batch_size: rows of a step.
        dtype: of the model.
    """
    tools = list(rounds[0])
    first = next(rounds[0][tool] for tool in tools if tool in OURS.values())
    steps = len(first["ends"]) - WARM_UP
    work = (
        steps * batch_size,
        sum(first["supervised"][WARM_UP:]),
        sum(first["tokens"][WARM_UP:]),
    )
    void, ratios = [], {}
    for peer in (tool for tool in tools if tool in OURS and OURS[tool] in tools):
        mine = [reports[OURS[peer]] for reports in rounds]
        its = [reports[peer] for reports in rounds]
        for number, pair in enumerate(zip(mine, its, strict=True), 1):
            void += [f"round {number}: {said}" for said in faults(*pair, peer=peer, dtype=dtype)]
        ratios[peer] = {
            "ours": OURS[peer],
            # Time the other way round: how many times as fast ours is.
            "speed": Ratio.of([seconds(r) for r in its], [seconds(r) for r in mine]),
        }
        for what, key in (("memory", "peak_memory_bytes"), ("arrays", "arrays_bytes")):
            if all(r.get(key) is not None for r in [*mine, *its]):
                ratios[peer][what] = Ratio.of([r[key] for r in mine], [r[key] for r in its])
    return {
        "void": void,
        "rows": work[0],
        "supervised_tokens": work[1],
        "tokens": work[2],
        "tools": {tool: measured([reports[tool] for reports in rounds], *work) for tool in tools},
        "ratios": ratios,
    }


def verdicts(found: Mapping[str, Any]) -> list[str]:
    """How ours fares beside each peer, in a line; none where the comparison is void.

    >>> speed, memory = (Ratio(median=m, least=m, most=m) for m in (14.52, 0.371))
    >>> trl = {"ours": "ours-torch", "speed": speed, "memory": memory}
    >>> verdicts({"void": [], "ratios": {"trl": trl}})
    ["ours-torch 14.5 times trl's speed, 0.37 of its memory"]
    """
    return [
        f"{ratio['ours']} {ratio['speed'].median:.1f} times {peer}'s speed, "
        f"{ratio['memory'].median:.2f} of its memory"
        for peer, ratio in found.get("ratios", {}).items()
        if not found["void"]
    ]


def table(comparisons: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: a row of each tool in each comparison that was made."""
    lines = [
        "| comparison | tool | examples/s | supervised tokens/s | tokens/s | peak memory "
        "| ours is so many times as fast | ours needs so much of its memory | of its arrays |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, found in comparisons.items():
        for tool, figures in found.get("tools", {}).items():
            ratio = found["ratios"].get(tool)
            cells = ["", "", ""]
            if ratio is not None and found["void"]:
                cells = ["void"] * 3
            elif ratio is not None:
                cells = [
                    spread(ratio[what]) if what in ratio else ""
                    for what in ("speed", "memory", "arrays")
                ]
            lines.append(
                f"| {name} | {tool} | {figures.examples_per_second:.3g} "
                f"| {figures.supervised_per_second:,.0f} | {figures.tokens_per_second:,.0f} "
                f"| {figures.peak_memory_bytes / 2**30:.2f} GiB | {' | '.join(cells)} |"
            )
    return "\n".join(lines)


def spread(ratio: Ratio) -> str:
    """The median, and between what it lay.

    >>> spread(Ratio(median=2.5, least=2.4, most=2.61))
    '2.50 (2.40-2.61)'
    """
    return f"{ratio.median:.2f} ({ratio.least:.2f}-{ratio.most:.2f})"
