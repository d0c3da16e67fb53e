"""MovieLens as questions: nothing of the future, nobody on both sides, the sizes asked for."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_local.errors import DatasetError
from qwen_local.recipes.movielens import (
    Histories,
    MovieLensOptions,
    Question,
    build,
    by_time,
    choose_ratings,
)
from qwen_local.recipes.movielens import questions as asked
from qwen_local.recipes.output import TRAIN, VALID
from qwen_local.recipes.ratings import Ratings, read_ratings

REAL = Path(__file__).parents[3] / "shared/data/ml-latest-small"

Rated = tuple[int, int, int, int]
"""User, film, half stars, time."""

FEW = st.tuples(
    st.integers(1, 6), st.integers(1, 12), st.integers(1, 10), st.integers(1_000, 1_010)
)
"""Small numbers, so that films repeat and moments coincide."""


def table(rated: list[Rated]) -> Ratings:
    columns = np.array(rated, np.int64).reshape(-1, 4).T
    kinds = ("int32", "int32", "uint8", "uint32")
    user, film, halves, time = (
        column.astype(kind) for column, kind in zip(columns, kinds, strict=True)
    )
    return Ratings(user_N=user, film_N=film, halves_N=halves, time_N=time)


def sides(rated: Ratings, options: MovieLensOptions) -> dict[str, list[Question]]:
    histories, _ = by_time(rated)
    chosen, _ = choose_ratings(histories, options)
    return {name: list(asked(histories, which, options)) for name, which in chosen.items()}


def some(users: int = 40, films: int = 30) -> list[Rated]:
    """Each user rates each film, at times that coincide now and then."""
    draw = random.Random(0)
    return [
        (user, film, draw.randint(1, 10), draw.randint(0, 4 * films))
        for user in range(users)
        for film in range(films)
    ]


# --- what a row may know ---


@given(
    rated=st.lists(FEW, max_size=80),
    history=st.integers(1, 6),
    least=st.integers(1, 4),
    balance=st.booleans(),
)
def test_no_rating_of_a_history_is_later_than_the_one_it_predicts(
    rated: list[Rated], history: int, least: int, balance: bool
) -> None:
    options = MovieLensOptions(
        train=50, eval=20, history=history, min_history=least, balance=balance
    )
    first: dict[tuple[int, int], Rated] = {}
    for user, film, halves, time in sorted(rated, key=lambda r: (r[3], r[2])):
        first.setdefault((user, film), (user, film, halves, time))
    for question in chain(*sides(table(rated), options).values()):
        own = [r for r in first.values() if r[0] == question.user]
        before = sorted((r for r in own if r[3] < question.time), key=lambda r: (r[3], r[1]))
        expected = tuple((film, halves / 2, time) for _, film, halves, time in before[-history:])
        assert question.history == expected
        assert len(before) >= least
        _, _, halves, time = first[question.user, question.film]
        assert (question.likes, question.time) == (halves >= 8, time)
        assert question.film not in {film for film, _, _ in question.history}


@given(rated=st.lists(FEW, max_size=80), seed=st.integers(0, 3))
def test_no_user_and_no_question_is_on_both_sides_or_twice(rated: list[Rated], seed: int) -> None:
    made = sides(table(rated), MovieLensOptions(train=30, eval=10, min_history=1, seed=seed))
    train, valid = ({question.user for question in side} for side in made.values())
    assert not train & valid
    pairs = [(q.user, q.film) for side in made.values() for q in side]
    assert len(set(pairs)) == len(pairs)


def test_ratings_of_the_same_second_are_no_history_of_each_other() -> None:
    rated = [(1, film, 8, 1_000) for film in range(9)] + [(1, 9, 8, 1_001)]
    histories, _ = by_time(table(rated))
    assert histories.earlier_N.tolist() == [0] * 9 + [9]


def test_a_film_that_is_rated_again_is_asked_about_once() -> None:
    histories, again = by_time(table([(1, 5, 2, 1_000), (1, 5, 9, 1_007), (2, 5, 4, 1_003)]))
    assert again == 1
    assert histories.ratings.time_N.tolist() == [1_000, 1_003]


# --- how many, and which ---


def by_label(questions: list[Question]) -> dict[bool, int]:
    counts: dict[bool, int] = defaultdict(int)
    for question in questions:
        counts[question.likes] += 1
    return dict(counts)


def test_the_sizes_are_those_asked_for() -> None:
    made = sides(table(some()), MovieLensOptions(train=301, eval=47))
    assert {name: len(side) for name, side in made.items()} == {TRAIN: 301, VALID: 47}


def test_balanced_files_have_as_many_yes_as_no_and_an_odd_row_is_yes() -> None:
    made = sides(table(some()), MovieLensOptions(train=201, eval=20, balance=True))
    assert by_label(made[TRAIN]) == {True: 101, False: 100}
    assert by_label(made[VALID]) == {True: 10, False: 10}


def test_if_yes_runs_out_the_number_of_no_is_reduced() -> None:
    rated = [(user, film, 2 if film < 25 else 9, film) for user in range(10) for film in range(30)]
    made = sides(table(rated), MovieLensOptions(train=1_000, eval=10, balance=True))
    assert by_label(made[TRAIN]) in ({True: n, False: n} for n in range(10, 51))
    assert by_label(made[VALID]) == {True: 5, False: 5}


def test_evaluation_takes_more_users_where_its_share_of_them_holds_too_few_rows() -> None:
    rated = [(user, film, 9, film) for user in range(20) for film in range(10)]
    made = sides(
        table(rated), MovieLensOptions(train=75, eval=25)
    )  # five ratings of each can be asked about
    assert {name: len(side) for name, side in made.items()} == {TRAIN: 75, VALID: 25}


@pytest.mark.parametrize("users", [1, 2, 3])
def test_at_least_one_user_is_in_training(users: int) -> None:
    made = sides(table(some(users)), MovieLensOptions(train=1, eval=1_000))
    assert len(made[TRAIN]) == 1
    assert len({question.user for question in made[VALID]}) == users - 1


def test_the_order_of_the_file_does_not_matter() -> None:
    rated = some()
    shuffled = random.Random(1).sample(rated, len(rated))
    options = MovieLensOptions(train=100, eval=10, balance=True)
    assert sides(table(rated), options) == sides(table(shuffled), options)


def test_another_seed_draws_other_questions() -> None:
    one, other = (
        sides(table(some()), MovieLensOptions(train=100, eval=10, seed=seed)) for seed in (0, 1)
    )
    assert one != other


def test_a_smaller_sample_is_the_start_of_a_larger_one() -> None:
    small, large = (
        sides(table(some()), MovieLensOptions(train=n, eval=n // 10)) for n in (100, 300)
    )
    assert large[TRAIN][:100] == small[TRAIN]


def test_working_block_by_block_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    twice = table(some() + [(user, film, 9, 200) for user, film, _, _ in some()])
    histories, again = by_time(twice)
    made = sides(twice, MovieLensOptions(train=100, eval=10))
    monkeypatch.setattr("qwen_local.recipes.movielens.BLOCK_RATINGS", 7)
    in_blocks, again_in_blocks = by_time(twice)
    assert again == again_in_blocks == 40 * 30
    assert in_blocks.ratings.time_N.tolist() == histories.ratings.time_N.tolist()
    assert sides(twice, MovieLensOptions(train=100, eval=10)) == made


# --- from files ---


def write(folder: Path, ratings: str, movies: str | None = None) -> Path:
    folder.mkdir()
    (folder / "ratings.csv").write_text(f"userId,movieId,rating,timestamp\n{ratings}")
    titles = movies or "".join(f'{film},"Film {film}, The (1999)",Drama\n' for film in range(8))
    (folder / "movies.csv").write_text(f"movieId,title,genres\n{titles}")
    return folder


def rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_a_row_shows_the_latest_ratings_and_asks_about_the_next(tmp_path: Path) -> None:
    data = write(tmp_path / "ml", "7,1,4.5,10\n7,2,2,20\n7,3,5.0,30\n7,4,4,40\n")
    options = MovieLensOptions(train=9, eval=0, history=2, min_history=3)
    summary = build(data, tmp_path / "out", overwrite=False, options=options)
    assert rows(tmp_path / "out/train.jsonl") == [
        {
            "prompt": "A user rated these films, from 0.5 to 5 stars, the latest last:\n"
            "Film 2, The (1999): 2\n"
            "Film 3, The (1999): 5\n"
            "Would this user like Film 4, The (1999)? Answer Yes or No.",
            "completion": "Yes",
        }
    ]
    assert summary.notes == [
        "train.jsonl has 1 rows, not 9: its users have no more ratings with enough history"
    ]
    assert not (tmp_path / "out/valid.jsonl").exists()


def test_films_without_a_title_are_neither_asked_about_nor_shown(tmp_path: Path) -> None:
    data = write(
        tmp_path / "ml",
        "1,1,4,10\n1,2,4,20\n1,9,4,30\n1,3,1,40\n2,9,1,50\n",
        "1,One,Drama\n2,Two,Drama\n3,Three,Drama\n9, ,Drama\n",
    )
    options = MovieLensOptions(train=9, eval=0, min_history=2)
    summary = build(data, tmp_path / "out", overwrite=False, options=options)
    [made] = rows(tmp_path / "out/train.jsonl")
    assert made["prompt"].splitlines()[1:] == [
        *("One: 4", "Two: 4", "Would this user like Three? Answer Yes or No.")
    ]
    assert summary.left_out == {
        "films_without_title": 1,
        "ratings_without_title": 2,
        "rated_again": 0,
        "too_little_history": 2,
        "not_drawn": 0,
    }


def test_a_data_set_without_enough_ratings_per_user_is_an_error(tmp_path: Path) -> None:
    data = write(tmp_path / "ml", "1,1,4,10\n1,2,4,20\n")
    with pytest.raises(DatasetError) as error:
        build(data, tmp_path / "out", overwrite=False, options=MovieLensOptions())
    assert str(error.value) == (
        f"{data}/ratings.csv: no rows: no rating has 5 earlier ratings by the same user"
    )
    assert not (tmp_path / "out").exists()


def made_folder(folder: Path) -> Path:
    """A data set in MovieLens' form: 40 users, 30 films."""
    folder.mkdir()
    films = "".join(f"{film},Film {film} (1999),Drama\n" for film in range(30))
    (folder / "movies.csv").write_text(f"movieId,title,genres\n{films}")
    ratings = "".join(f"{u},{f},{halves / 2},{time}\n" for u, f, halves, time in some())
    (folder / "ratings.csv").write_text(f"userId,movieId,rating,timestamp\n{ratings}")
    return folder


@pytest.mark.parametrize(
    ("real", "train", "valid"), [(False, 400, 40), *([(True, 4_000, 400)] if REAL.is_dir() else [])]
)
def test_no_row_of_a_file_knows_the_future(
    real: bool, train: int, valid: int, tmp_path: Path
) -> None:
    folder = REAL if real else made_folder(tmp_path / "ml")
    rated, faults = read_ratings(folder / "ratings.csv")
    assert faults == []
    known: dict[int, list[tuple[int, float, int]]] = defaultdict(list)
    columns = (rated.user_N, rated.film_N, rated.halves_N / 2, rated.time_N)
    for user, film, stars, time in zip(*(c.tolist() for c in columns), strict=True):
        known[user].append((film, stars, time))
    options = MovieLensOptions(train=train, eval=valid)
    made = sides(rated, options)
    assert {name: len(side) for name, side in made.items()} == {TRAIN: train, VALID: valid}
    for question in made[TRAIN] + made[VALID]:
        earlier = [rating for rating in known[question.user] if rating[2] < question.time]
        assert len(earlier) >= options.min_history
        assert set(question.history) <= set(earlier)
        latest = sorted(time for _, _, time in earlier)[-options.history :]
        assert [time for _, _, time in question.history] == latest


def test_a_balanced_build_has_as_many_of_each_answer(tmp_path: Path) -> None:
    data = made_folder(tmp_path / "ml")
    summary = build(data, tmp_path / "out", overwrite=False, options=MovieLensOptions(balance=True))
    for side in (TRAIN, VALID):
        yes, no = (summary.labels[side][answer] for answer in ("Yes", "No"))
        assert yes > 0 and abs(yes - no) <= 1
    assert summary.left_out["not_drawn"] > 0


if REAL.is_dir():  # not in a clone

    @pytest.mark.slow
    def test_the_real_file_gives_the_sizes_of_reference_run_r4(tmp_path: Path) -> None:
        summary = build(
            REAL, tmp_path / "out", overwrite=False, options=MovieLensOptions(balance=True)
        )
        assert summary.labels == {
            TRAIN: {"Yes": 39_136, "No": 39_135},
            VALID: {"No": 2_225, "Yes": 2_225},
        }
        assert summary.left_out == {
            "films_without_title": 1,
            "ratings_without_title": 1,
            "rated_again": 0,
            "too_little_history": 3_344,
            "not_drawn": 14_770,
        }
        assert summary.notes == []


def test_histories_match_their_definition() -> None:
    histories, _ = by_time(table([(2, 1, 9, 5), (1, 1, 9, 5), (1, 2, 9, 4)]))
    assert isinstance(histories, Histories)
    assert histories.ratings.user_N.tolist() == [1, 1, 2]
    assert histories.user_start_N.tolist() == [0, 0, 2]
    assert histories.time_start_N.tolist() == [0, 1, 2]
