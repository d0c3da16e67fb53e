"""MovieLens' files: read as they are published, and every fault of them found."""

from __future__ import annotations

import codecs
from pathlib import Path

import pytest

from qwen_local.errors import DatasetError
from qwen_local.recipes.ratings import find_files, read_ratings, read_titles

HEADER = b"userId,movieId,rating,timestamp\n"


def faults_of(path: Path, content: bytes) -> list[str]:
    """The faults of a ratings file, without the folder's name."""
    path.write_bytes(content)
    ratings, faults = read_ratings(path)
    assert len(ratings) == 0 or not faults
    return [str(fault).replace(f"{path.parent}/", "") for fault in faults]


def test_ratings_are_read_whatever_the_order_of_the_columns(tmp_path: Path) -> None:
    path = tmp_path / "ratings.csv"
    path.write_bytes(
        b"\xef\xbb\xbfrating,note,movieId,timestamp,userId\r\n0.5,x,7,0,1\r\n\r\n5,,8,9,2"
    )
    ratings, faults = read_ratings(path)
    assert faults == []
    assert ratings.user_N.tolist() == [1, 2]
    assert ratings.film_N.tolist() == [7, 8]
    assert ratings.halves_N.tolist() == [1, 10]
    assert ratings.time_N.tolist() == [0, 9]


def test_every_line_that_is_no_rating_is_named(tmp_path: Path) -> None:
    lines = [
        *("1,2,3.0,4", "1,2,3.0", "x,2,3,4", "1,,3,4", "1,2,0,4", "1,2,4.3,4", "1,2,nan,4"),
        *("1,2,3,-4", "1,2,3,4294967296", "99999999999,-2,3,4", '1,"2",3,4'),
    ]
    content = codecs.BOM_UTF8 + HEADER + "\n".join(lines).encode() + b"\n1,2,\xff,4\n"
    stars = "expected stars from 0.5 to 5 in steps of a half"
    ids = "expected a whole number from 0 to 2147483647"
    assert faults_of(tmp_path / "ratings.csv", content) == [
        "ratings.csv:3: expected 4 fields, as in the header; found 3",
        f"ratings.csv:4: userId: {ids}; found 'x'",
        f"ratings.csv:5: movieId: {ids}; found ''",
        f"ratings.csv:6: rating: {stars}; found '0'",
        f"ratings.csv:7: rating: {stars}; found '4.3'",
        f"ratings.csv:8: rating: {stars}; found 'nan'",
        "ratings.csv:9: timestamp: expected a whole number from 0 to 4294967295; found '-4'",
        "ratings.csv:10: timestamp: expected a whole number from 0 to 4294967295; "
        "found '4294967296'",
        f"ratings.csv:11: userId: {ids}; found '99999999999'",
        f"ratings.csv:11: movieId: {ids}; found '-2'",
        f"ratings.csv:13: rating: {stars}; found '\\udcff'",
    ]


@pytest.mark.parametrize("rating", ["4.3", "0", "5.5", "nan", "", "-1", "four"])
def test_one_rating_off_the_scale_is_enough(tmp_path: Path, rating: str) -> None:
    wanted = "expected stars from 0.5 to 5 in steps of a half"
    assert faults_of(tmp_path / "ratings.csv", HEADER + f"1,2,3,4\n1,2,{rating},4\n".encode()) == [
        f"ratings.csv:3: rating: {wanted}; found {rating!r}"
    ]


@pytest.mark.parametrize("line", ["-1,2,3,4", "1,-2,3,4", "1,2,3,-4", "1,2,3,4294967296"])
def test_one_number_out_of_its_range_is_enough(tmp_path: Path, line: str) -> None:
    [message] = faults_of(tmp_path / "ratings.csv", HEADER + f"1,2,3,4\n{line}\n".encode())
    assert message.startswith("ratings.csv:3: ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "ratings.csv:1: expected a column 'userId'; found none"),
        (
            b"userID,movieId,rating,timestamp\n1,2,3,4\n",
            "ratings.csv:1: expected a column 'userId'; "
            "found 'userID', 'movieId', 'rating', 'timestamp'\n\nhint: did you mean \"userID\"?",
        ),
        (
            b"userId,movieId,rating,timestamp,rating\n1,2,3,4,5\n",
            "ratings.csv:1: expected one column 'rating'; "
            "found 'userId', 'movieId', 'rating', 'timestamp', 'rating'\n\n"
            "hint: rename or remove all but one",
        ),
        (
            "userId,movieId,rating,timestamp\n1,2,3,4\n".encode("utf-16"),
            "ratings.csv:1: expected UTF-8; found byte 0xff at offset 0\n\n"
            "hint: save the file as UTF-8",
        ),
    ],
    ids=["empty", "another name", "twice", "UTF-16"],
)
def test_a_header_that_is_not_the_published_one_is_named(
    tmp_path: Path, content: bytes, message: str
) -> None:
    assert faults_of(tmp_path / "ratings.csv", content)[0] == message


def test_titles_are_taken_as_published(tmp_path: Path) -> None:
    path = tmp_path / "movies.csv"
    path.write_text('movieId,title,genres\n1,"Matrix, The (1999)",Action\n2,Léon (1994),\n3,,\n')
    assert read_titles(path) == ({1: "Matrix, The (1999)", 2: "Léon (1994)"}, [])


def test_every_title_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    path = tmp_path / "movies.csv"
    path.write_bytes(b"movieId,title\n1,Heat\nx,Babe\n1,Heat\n1,Casino\n2\n99999999999,Big\n")
    _, faults = read_titles(path)
    assert [str(fault).replace(f"{path.parent}/", "") for fault in faults] == [
        "movies.csv:3: movieId: expected a whole number from 0 to 2147483647; found 'x'",
        "movies.csv:5: movieId: film 1 has two different titles\n\nhint: remove one of them",
        "movies.csv:6: expected 2 fields, as in the header; found 1\n\n"
        "hint: put double quotes around fields that contain a comma",
        "movies.csv:7: movieId: expected a whole number from 0 to 2147483647; found '99999999999'",
    ]


def test_titles_in_another_encoding_are_named(tmp_path: Path) -> None:
    path = tmp_path / "movies.csv"
    path.write_bytes("movieId,title\n1,Léon (1994)\n".encode("latin-1"))
    _, [fault] = read_titles(path)
    assert str(fault) == (
        f"{path}:2: expected UTF-8; found byte 0xe9 at offset 17\n\n"
        "hint: save the file as UTF-8 (it may be Latin-1 or Windows-1252)"
    )


def test_a_missing_column_of_the_movies_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "movies.csv"
    path.write_text("movieid,titel\n1,Heat\n")
    _, faults = read_titles(path)
    assert [fault.hint for fault in faults] == ['did you mean "movieid"?', 'did you mean "titel"?']


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            ["movies.csv"],
            ": the folder has no ratings.csv\n\n"
            "hint: unpack ml-25m.zip, ml-32m.zip or ml-latest-small.zip and pass the folder",
        ),
        (
            ["ratings.dat", "movies.dat"],
            ": the folder has no ratings.csv and no movies.csv\n\n"
            "hint: the 1M and 10M sets have another layout; use 25M, 32M or latest-small",
        ),
    ],
    ids=["half", "10M"],
)
def test_a_missing_file_is_named(tmp_path: Path, files: list[str], message: str) -> None:
    for name in files:
        (tmp_path / name).touch()
    with pytest.raises(DatasetError) as error:
        find_files(tmp_path)
    assert str(error.value) == f"{tmp_path}{message}"


def test_a_path_that_is_not_a_folder_is_an_error(tmp_path: Path) -> None:
    packed = tmp_path / "ml-25m.zip"
    packed.touch()
    for path, message in [
        (packed, "expected a folder; found a file\n\nhint: unpack it and pass the folder"),
        (
            tmp_path / "no",
            "no such folder\n\nhint: pass the folder that contains ratings.csv and movies.csv",
        ),
    ]:
        with pytest.raises(DatasetError) as error:
            find_files(path)
        assert str(error.value) == f"{path}: {message}"
