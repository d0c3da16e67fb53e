"""MovieLens as a question: would this user like this film, given these ratings? Yes or No.

No row knows the future: its history holds only ratings that are earlier, by their timestamps, than
the one it asks about. Ratings of the same second are no history of each other, because their order
is not known.

No evaluation row was seen in training: a user's rows are all on one side. Rows of one user share
most of their history, and what one asks about another one tells, so a split by row would leak; a
split by time would have to drop every history that reaches across it.

Shapes: N = ratings, U = users, Q = questions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qwen_local.console.log import log
from qwen_local.errors import DatasetError
from qwen_local.recipes.output import TRAIN, VALID, Row, Summary, balance, check_output, write_rows
from qwen_local.recipes.ratings import Ratings, find, read_ratings, read_titles
from qwen_local.recipes.subset import draws, smallest

BLOCK = 1 << 20
"""Ratings that are looked at at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Wishes:
    """What the rows are to be like."""

    train: int = 78_271
    eval: int = 4_450
    history: int = 20
    """Most ratings shown: the most recent ones."""
    min_history: int = 5
    """Fewest earlier ratings that a question needs."""
    like_from: float = 4.0
    """Stars from which the answer is Yes."""
    balance: bool = False
    """As many Yes as No, on each side."""
    seed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """One rating, and what was known before it."""

    user: int
    film: int
    time: int
    likes: bool
    history: tuple[tuple[int, float, int], ...]
    """(film, stars, time), the oldest first."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Histories:
    """Ratings by user and time, and where the history of each lies among them."""

    ratings: Ratings
    user_start_N: np.ndarray
    """int32 [N]: the first rating of the same user."""
    time_start_N: np.ndarray
    """int32 [N]: the first rating of the same user and second. What is known before rating n is
    user_start_N[n] to time_start_N[n]."""

    @property
    def earlier_N(self) -> np.ndarray:
        """int32 [N]: ratings that the user gave before."""
        earlier_N: np.ndarray = self.time_start_N - self.user_start_N
        return earlier_N

    def question(self, n: int, *, history: int, like_from: float) -> Question:
        """Rating n as a question."""
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


def build(folder: Path, output: Path, *, overwrite: bool, wishes: Wishes) -> Summary:
    """The folder of rows from an unpacked data set.

    Raises:
        DatasetError: the data cannot be used; every fault of both files is named.
        JobError: the output cannot be written.
    """
    files = find(folder)
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
    chosen, possible = choose(histories, wishes)
    if not len(chosen[TRAIN]):
        problem = f"no rating has {wishes.min_history} earlier ones by the same user"
        if possible:
            problem = "all ratings that could be asked about are of one user or of one answer"
        raise DatasetError.at(str(ratings_csv), f"gives no row: {problem}")

    def rows(name: str) -> Iterator[Row]:
        for question in questions(histories, chosen[name], wishes):
            yield row(question, titles)

    write_rows(output, rows(TRAIN), rows(VALID))
    r = histories.ratings
    drawn = sum(map(len, chosen.values()))
    return Summary(
        output=output,
        rows={name: len(which) for name, which in chosen.items()},
        labels={
            name: balance(map(_answer, r.halves_N[which] >= 2 * wishes.like_from))
            for name, which in chosen.items()
        },
        left_out={
            "films_without_title": films,
            "ratings_without_title": untitled,
            "rated_again": again,
            "too_little_history": len(r) - possible,
            "not_drawn": possible - drawn,
        },
        notes=_shortfalls(chosen, wishes),
    )


def by_time(ratings: Ratings) -> tuple[Histories, int]:
    """The ratings by user and time, and how many were left out.

    A film that a user rated again is left out but for the first time: the earlier rating would be
    the answer. Equal moments are in the order of their films, so the file's order is no matter.
    """
    r = ratings.take(np.lexsort((ratings.halves_N, ratings.film_N, ratings.time_N, ratings.user_N)))
    again_N = _again(r)
    if again_N.any():
        r = r.take(~again_N)
    new_user = _new(r.user_N)
    starts = Histories(
        ratings=r,
        user_start_N=_latest(new_user),
        time_start_N=_latest(new_user | _new(r.time_N)),
    )
    return starts, int(again_N.sum())


def _again(r: Ratings) -> np.ndarray:
    """bool [N]: where a user rates a film again. The ratings are by user and time."""
    again_N = np.zeros(len(r), bool)
    start = 0
    while start < len(r):  # some users at a time, to spare the memory
        last = r.user_N[min(start + BLOCK, len(r)) - 1]
        end = int(np.searchsorted(r.user_N, last, side="right"))
        user, film = r.user_N[start:end], r.film_N[start:end]
        by_film = np.lexsort((film, user))  # keeps the order of time
        again_N[start + by_film] = ~(_new(user[by_film]) | _new(film[by_film]))
        start = end
    return again_N


def _new(column_N: np.ndarray) -> np.ndarray:
    """bool [N]: where a value differs from the one before; it does at the start."""
    new = np.ones(len(column_N), bool)
    np.not_equal(column_N[1:], column_N[:-1], out=new[1:])
    return new


def _latest(marks_N: np.ndarray) -> np.ndarray:
    """int32 [N]: the latest index at or before n that is marked.

    >>> _latest(np.array([True, False, False, True, False])).tolist()
    [0, 0, 0, 3, 3]
    """
    index_N = np.arange(len(marks_N), dtype=np.int32)
    index_N[~marks_N] = 0
    np.maximum.accumulate(index_N, out=index_N)
    return index_N


def choose(histories: Histories, wishes: Wishes) -> tuple[dict[str, np.ndarray], int]:
    """The ratings to ask about on each side, in the order of their draws.

    The users with the smallest draws are for evaluation: their part of all users is that of the
    evaluation rows in all rows wished for, and more where these users hold too few rows.

    Returns:
        Indices by file, and how many ratings have history enough to be asked about.
    """
    r = histories.ratings
    possible_N = histories.earlier_N >= wishes.min_history
    groups = [possible_N]
    if wishes.balance:
        likes_N = r.halves_N >= 2 * wishes.like_from
        groups = [possible_N & likes_N, possible_N & ~likes_N]
    wanted = {
        TRAIN: _parts(wishes.train, len(groups)),
        VALID: _parts(wishes.eval, len(groups)),
    }
    held_N = _held_out(r.user_N, groups, wanted, wishes.seed)
    chosen = {}
    for name, side_N in ((TRAIN, ~held_N), (VALID, held_N)):
        sides = [group & side_N for group in groups]
        sizes = [min(n, int(side.sum())) for n, side in zip(wanted[name], sides, strict=True)]
        if sum(sizes) < sum(wanted[name]):
            sizes = [min(sizes)] * len(sizes)  # still as many Yes as No
        drawn = [_drawn(r, side, n, wishes.seed) for side, n in zip(sides, sizes, strict=True)]
        mixed = np.concatenate(drawn)
        chosen[name] = mixed[np.argsort(_draws(r, mixed, wishes.seed))]
    return chosen, int(possible_N.sum())


def _parts(rows: int, groups: int) -> list[int]:
    """Rows of each group: as equal as can be, the first ones larger.

    >>> _parts(7, 2), _parts(7, 1)
    ([4, 3], [7])
    """
    return [(rows + groups - 1 - g) // groups for g in range(groups)]


def _held_out(
    user_N: np.ndarray, groups: list[np.ndarray], wanted: Mapping[str, list[int]], seed: int
) -> np.ndarray:
    """bool [N]: the ratings of the users that are kept for evaluation. One user always trains."""
    if not sum(wanted[VALID]) or not len(user_N):
        return np.zeros(len(user_N), bool)
    first_U = np.flatnonzero(_new(user_N))
    order_U = np.argsort(draws(seed, user_N[first_U]))
    share = sum(wanted[VALID]) / (sum(wanted[VALID]) + sum(wanted[TRAIN]))
    users = round(share * len(order_U))
    for group_N, for_train, for_eval in zip(groups, wanted[TRAIN], wanted[VALID], strict=True):
        held_U = np.add.reduceat(group_N, first_U, dtype=np.int32)
        # Where there are too few rows for both sides, both get less.
        there = min(1.0, int(held_U.sum()) / max(1, for_eval + for_train))
        needed = there * for_eval
        users = max(users, 1 + int(np.searchsorted(np.cumsum(held_U[order_U]), needed)))
    is_held_U = np.zeros(len(order_U), bool)
    is_held_U[order_U[: min(users, len(order_U) - 1)]] = True
    return np.repeat(is_held_U, np.diff(first_U, append=len(user_N)))


def _drawn(r: Ratings, among_N: np.ndarray, size: int, seed: int) -> np.ndarray:
    """int64 [size]: the ratings with the smallest draws, block by block to spare the memory."""
    kept = np.zeros(0, np.int64)
    for start in range(0, len(r), BLOCK):
        more = start + np.flatnonzero(among_N[start : start + BLOCK])
        kept = np.concatenate([kept, more])
        kept = kept[smallest(_draws(r, kept, seed), size)]
    return kept


def _draws(r: Ratings, which: np.ndarray, seed: int) -> np.ndarray:
    """uint64: of these ratings; all different, because a user rates a film once."""
    return draws(seed, r.user_N[which].astype(np.int64) << 32 | r.film_N[which])


def questions(histories: Histories, which: np.ndarray, wishes: Wishes) -> Iterator[Question]:
    """The questions of these ratings, in this order."""
    for n in which.tolist():
        yield histories.question(n, history=wishes.history, like_from=wishes.like_from)


def row(question: Question, titles: Mapping[int, str]) -> Row:
    """A question as a prompt, and its answer.

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


def _shortfalls(chosen: Mapping[str, np.ndarray], wishes: Wishes) -> list[str]:
    notes = []
    for name, wanted in ((TRAIN, wishes.train), (VALID, wishes.eval)):
        if (rows := len(chosen[name])) < wanted:
            lack = "of the rarer answer" if wishes.balance else "with history enough"
            why = f"its users gave no more ratings {lack}"
            notes.append(f"{name} has {rows:,} rows, not {wanted:,}: {why}")
    return notes
