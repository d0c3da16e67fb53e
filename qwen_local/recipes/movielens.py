"""MovieLens: ask whether a user would like a film, given earlier ratings. Yes or No.

No future leak: the history of a row contains only ratings with an earlier timestamp than the rating
in question. Ratings of the same second are not part of each other's history, because their order is
unknown.

No split leak: all rows of a user are in the same file. Rows of one user share most of their
history, and one row's answer occurs in another row's history, so a split by row would leak. A split
by time would have to drop every history that spans it.

Shapes: N = ratings, U = users, Q = questions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qwen_local.console.log import log
from qwen_local.errors import DatasetError
from qwen_local.recipes.output import (
    TRAIN,
    VALID,
    RecipeSummary,
    Row,
    balance,
    check_output,
    write_rows,
)
from qwen_local.recipes.ratings import Ratings, find_files, read_ratings, read_titles
from qwen_local.recipes.subset import draws, smallest

BLOCK_RATINGS = 1 << 20
"""Ratings per block, for work that would otherwise need memory for all ratings."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MovieLensOptions:
    """Options of the `movielens` recipe."""

    train: int = 78_271
    """Number of rows in `train.jsonl`."""
    eval: int = 4_450
    """Number of rows in `valid.jsonl`."""
    history: int = 20
    """Maximum number of ratings in a prompt; the most recent ones."""
    min_history: int = 5
    """Minimum number of earlier ratings."""
    like_from: float = 4.0
    """Number of stars from which the answer is Yes."""
    balance: bool = False
    """True for as many Yes as No in each file."""
    seed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """One rating and the user's earlier ratings."""

    user: int
    film: int
    time: int
    likes: bool
    history: tuple[tuple[int, float, int], ...]
    """(film, stars, time) of earlier ratings, oldest first."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Histories:
    """Ratings sorted by user and time, with the range of each rating's history."""

    ratings: Ratings
    user_start_N: np.ndarray
    """int32 [N]: index of the first rating of the same user."""
    time_start_N: np.ndarray
    """int32 [N]: index of the first rating of the same user and second. The history of rating n is
    the range from user_start_N[n] to time_start_N[n]."""

    @property
    def earlier_N(self) -> np.ndarray:
        """int32 [N]: number of earlier ratings by the same user."""
        earlier_N: np.ndarray = self.time_start_N - self.user_start_N
        return earlier_N

    def question(self, n: int, *, history: int, like_from: float) -> Question:
        """Return rating n as a question."""
        r = self.ratings
        end = int(self.time_start_N[n])
        shown = slice(max(int(self.user_start_N[n]), end - history), end)
        columns = (r.film_N[shown], r.halves_N[shown] / 2, r.time_N[shown])
        return Question(
            user=int(r.user_N[n]),
            film=int(r.film_N[n]),
            time=int(r.time_N[n]),
            likes=bool(r.halves_N[n] >= 2 * like_from),
            history=tuple(zip(*(column.tolist() for column in columns), strict=True)),
        )


def build(
    folder: Path, output: Path, *, overwrite: bool, options: MovieLensOptions
) -> RecipeSummary:
    """Write the folder of rows for an unpacked data set.

    Raises:
        DatasetError: the data are invalid; the error lists every fault of both files.
        JobError: the output cannot be written.
    """
    files = find_files(folder)
    check_output(output, overwrite=overwrite, sources=files)
    ratings_csv, movies_csv = files
    titles, faults = read_titles(movies_csv)
    ratings, more = read_ratings(ratings_csv)
    if faults or more:
        raise DatasetError([*faults, *more])
    log.info("%s: %s ratings, %s titles", folder, f"{len(ratings):,}", f"{len(titles):,}")
    titled_N = np.isin(ratings.film_N, np.fromiter(titles, np.int32))
    films = len(np.unique(ratings.film_N[~titled_N]))
    untitled = len(ratings) - int(titled_N.sum())
    histories, again = by_time(ratings.take(titled_N) if untitled else ratings)
    del ratings
    chosen, eligible = choose_ratings(histories, options)
    if not len(chosen[TRAIN]):
        problem = f"no rating has {options.min_history} earlier ratings by the same user"
        if eligible:
            problem = "all usable ratings are by one user or have the same answer"
        raise DatasetError.at(str(ratings_csv), f"no rows: {problem}")

    def rows(name: str) -> Iterator[Row]:
        for question in questions(histories, chosen[name], options):
            yield row(question, titles)

    write_rows(output, rows(TRAIN), rows(VALID))
    r = histories.ratings
    drawn = sum(map(len, chosen.values()))
    return RecipeSummary(
        output=output,
        rows={name: len(which) for name, which in chosen.items()},
        labels={
            name: balance(map(_answer, r.halves_N[which] >= 2 * options.like_from))
            for name, which in chosen.items()
        },
        left_out={
            "films_without_title": films,
            "ratings_without_title": untitled,
            "rated_again": again,
            "too_little_history": len(r) - eligible,
            "not_drawn": eligible - drawn,
        },
        notes=_shortfalls(chosen, options),
    )


def by_time(ratings: Ratings) -> tuple[Histories, int]:
    """Sort the ratings by user and time; also return the number of repeated ratings left out.

    Only the first rating of a film by a user is kept, because an earlier rating would give away the
    answer. Ratings of the same second are sorted by film, so the order of the file has no effect.
    """
    r = ratings.take(np.lexsort((ratings.halves_N, ratings.film_N, ratings.time_N, ratings.user_N)))
    again_N = _is_repeat(r)
    if again_N.any():
        r = r.take(~again_N)
    new_user = _is_new(r.user_N)
    starts = Histories(
        ratings=r,
        user_start_N=_latest_marked(new_user),
        time_start_N=_latest_marked(new_user | _is_new(r.time_N)),
    )
    return starts, int(again_N.sum())


def _is_repeat(r: Ratings) -> np.ndarray:
    """Return bool [N]: True where a user rates a film again; expects ratings by user and time."""
    again_N = np.zeros(len(r), bool)
    start = 0
    while start < len(r):  # a block of whole users at a time, to save memory
        last = r.user_N[min(start + BLOCK_RATINGS, len(r)) - 1]
        end = int(np.searchsorted(r.user_N, last, side="right"))
        user, film = r.user_N[start:end], r.film_N[start:end]
        by_film = np.lexsort((film, user))  # stable: keeps the time order
        again_N[start + by_film] = ~(_is_new(user[by_film]) | _is_new(film[by_film]))
        start = end
    return again_N


def _is_new(column_N: np.ndarray) -> np.ndarray:
    """Return bool [N]: True where a value differs from the previous one; the first is True."""
    new = np.ones(len(column_N), bool)
    np.not_equal(column_N[1:], column_N[:-1], out=new[1:])
    return new


def _latest_marked(marks_N: np.ndarray) -> np.ndarray:
    """Return int32 [N]: the latest marked index at or before n.

    >>> _latest_marked(np.array([True, False, False, True, False])).tolist()
    [0, 0, 0, 3, 3]
    """
    index_N = np.arange(len(marks_N), dtype=np.int32)
    index_N[~marks_N] = 0
    np.maximum.accumulate(index_N, out=index_N)
    return index_N


def choose_ratings(
    histories: Histories, options: MovieLensOptions
) -> tuple[dict[str, np.ndarray], int]:
    """Select the ratings for each file, in the order of their hashes.

    The users with the smallest hashes are held out for evaluation. Their share of all users equals
    the evaluation rows' share of all requested rows; it is larger if these users have too few rows.

    Returns:
        Indices by file, and the number of ratings with enough history.
    """
    r = histories.ratings
    eligible_N = histories.earlier_N >= options.min_history
    groups = [eligible_N]
    if options.balance:
        likes_N = r.halves_N >= 2 * options.like_from
        groups = [eligible_N & likes_N, eligible_N & ~likes_N]
    requested = {
        TRAIN: _group_sizes(options.train, len(groups)),
        VALID: _group_sizes(options.eval, len(groups)),
    }
    held_N = _held_out(r.user_N, groups, requested, options.seed)
    chosen = {}
    for name, in_file_N in ((TRAIN, ~held_N), (VALID, held_N)):
        pools = [group & in_file_N for group in groups]
        sizes = [min(n, int(pool.sum())) for n, pool in zip(requested[name], pools, strict=True)]
        if sum(sizes) < sum(requested[name]):
            sizes = [min(sizes)] * len(sizes)  # still as many Yes as No
        drawn = [_sample(r, pool, n, options.seed) for pool, n in zip(pools, sizes, strict=True)]
        mixed = np.concatenate(drawn)
        chosen[name] = mixed[np.argsort(_draws(r, mixed, options.seed))]
    return chosen, int(eligible_N.sum())


def _group_sizes(rows: int, groups: int) -> list[int]:
    """Divide rows into groups of nearly equal size, the first ones larger.

    >>> _group_sizes(7, 2), _group_sizes(7, 1)
    ([4, 3], [7])
    """
    return [(rows + groups - 1 - g) // groups for g in range(groups)]


def _held_out(
    user_N: np.ndarray, groups: list[np.ndarray], requested: Mapping[str, list[int]], seed: int
) -> np.ndarray:
    """Return bool [N]: True for ratings of held-out users. At least one user is not held out."""
    if not sum(requested[VALID]) or not len(user_N):
        return np.zeros(len(user_N), bool)
    first_U = np.flatnonzero(_is_new(user_N))
    order_U = np.argsort(draws(seed, user_N[first_U]))
    share = sum(requested[VALID]) / (sum(requested[VALID]) + sum(requested[TRAIN]))
    users = round(share * len(order_U))
    sizes = zip(groups, requested[TRAIN], requested[VALID], strict=True)
    for group_N, for_train, for_eval in sizes:
        rows_U = np.add.reduceat(group_N, first_U, dtype=np.int32)
        # If there are too few rows for both files, both get proportionally less.
        available = min(1.0, int(rows_U.sum()) / max(1, for_eval + for_train))
        needed = available * for_eval
        users = max(users, 1 + int(np.searchsorted(np.cumsum(rows_U[order_U]), needed)))
    is_held_U = np.zeros(len(order_U), bool)
    is_held_U[order_U[: min(users, len(order_U) - 1)]] = True
    return np.repeat(is_held_U, np.diff(first_U, append=len(user_N)))


def _sample(r: Ratings, pool_N: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Return int64 [size]: the ratings with the smallest hashes, found in blocks to save memory."""
    kept = np.zeros(0, np.int64)
    for start in range(0, len(r), BLOCK_RATINGS):
        more = start + np.flatnonzero(pool_N[start : start + BLOCK_RATINGS])
        kept = np.concatenate([kept, more])
        kept = kept[smallest(_draws(r, kept, seed), size)]
    return kept


def _draws(r: Ratings, which: np.ndarray, seed: int) -> np.ndarray:
    """Return uint64 hashes of these ratings; all differ, because a user rates a film once."""
    return draws(seed, r.user_N[which].astype(np.int64) << 32 | r.film_N[which])


def questions(
    histories: Histories, which: np.ndarray, options: MovieLensOptions
) -> Iterator[Question]:
    """Yield the questions for these ratings, in this order."""
    for n in which.tolist():
        yield histories.question(n, history=options.history, like_from=options.like_from)


def row(question: Question, titles: Mapping[int, str]) -> Row:
    """Format a question as a prompt and its answer.

    >>> asked = Question(user=1, film=2, time=9, likes=True, history=((1, 4.5, 8), (3, 2.0, 8)))
    >>> print(row(asked, {1: "Heat (1995)", 2: "Casino (1995)", 3: "Babe (1995)"})["prompt"])
    A user rated these films, from 0.5 to 5 stars, the latest last:
    Heat (1995): 4.5
    Babe (1995): 2
    Would this user like Casino (1995)? Answer Yes or No.
    """
    shown = [f"{titles[film]}: {stars:g}" for film, stars, _ in question.history]
    lines = [
        "A user rated these films, from 0.5 to 5 stars, the latest last:",
        *shown,
        f"Would this user like {titles[question.film]}? Answer Yes or No.",
    ]
    return {"prompt": "\n".join(lines), "completion": _answer(question.likes)}


def _answer(likes: bool) -> str:
    return "Yes" if likes else "No"


def _shortfalls(chosen: Mapping[str, np.ndarray], options: MovieLensOptions) -> list[str]:
    notes = []
    for name, requested in ((TRAIN, options.train), (VALID, options.eval)):
        if (rows := len(chosen[name])) < requested:
            lack = "with the rarer answer" if options.balance else "with enough history"
            why = f"its users have no more ratings {lack}"
            notes.append(f"{name} has {rows:,} rows, not {requested:,}: {why}")
    return notes
