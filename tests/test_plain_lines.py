"""Bytes of logs become plain lines, however they are cut into chunks, and no token gets through."""

from __future__ import annotations

import random

import pytest

from prefect_mantik.log import without_tokens
from prefect_mantik.waiting.plain_lines import LONGEST_HELD, PlainLines, plain

TOKEN = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJtZSJ9.c2lnbmF0dXJl-_x"


def lines_of(*chunks: bytes, is_cut: bool = False) -> list[str]:
    reader = PlainLines(is_cut=is_cut)
    return [line for chunk in chunks for line in reader.feed(chunk)] + reader.finish()


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("loss 0.2", "loss 0.2"),
        ("a\tb  ", "a\tb"),
        ("\x1b[1;31mred\x1b[0m text", "red text"),
        ("\x1b[38:2:1:2:3mcolour", "colour"),
        ("\x9b31mred", "red"),
        ("\x1b]0;a title\x07text", "text"),
        ("\x1b]8;;https://example.org\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1b]no end of it", "no end of it"),
        ("\x1b(Bcharset\x1b", "charset"),
        ("bell\x07 null\x00 back\x08", "bell null back"),
        ("right\u202eleft", "rightleft"),
        ("two\u2028lines", "two lines"),
        ("\r 10%|#  |\r 90%|## |\r100%|###|", "100%|###|"),
        ("done\r", "done"),
        ("100%\r\x1b[0m", "100%"),
        (f"token {TOKEN}, all", "token ***, all"),
        (f"\x1b[32m{TOKEN}\x1b[0m", "***"),
        (TOKEN.replace("hbG", "\x1b[1mhbG\x1b[0m"), "***"),
        (TOKEN.replace("hbG", "\x00hbG"), "***"),
        (f"Bearer {TOKEN[:30]}", "Bearer ***"),
    ],
)
def test_a_line_is_plain_text(raw: str, shown: str) -> None:
    assert plain(raw) == shown


TEXT = (
    "épôque 1 € loss\n\n\x1b[31mrot\x1b[0m\r\n"
    + "\r".join(f"{n}%|█" for n in range(0, 101, 10))
    + f"\nexport T={TOKEN}\n日本語 \U0001f600\nno end {TOKEN}"
)
LINES = ["épôque 1 € loss", "", "rot", "100%|█", "export T=***", "日本語 \U0001f600", "no end ***"]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 64, 10_000])
def test_however_it_is_cut_the_lines_are_the_same(size: int) -> None:
    data = TEXT.encode()
    assert lines_of(*(data[at : at + size] for at in range(0, len(data), size))) == LINES


def test_cut_at_random_the_lines_are_the_same_and_what_is_held_is_known() -> None:
    data, chance = TEXT.encode() * 3, random.Random(1)
    for _ in range(100):
        reader, at, given = PlainLines(), 0, list[str]()
        while at < len(data):
            size = chance.randint(1, 40)
            given += reader.feed(data[at : at + size])
            at = min(len(data), at + size)
            assert reader.held == at - (data.rfind(b"\n", 0, at) + 1)
        assert given + reader.finish() == lines_of(data)


def test_half_a_line_is_held_until_its_end_comes() -> None:
    reader = PlainLines()
    assert reader.feed(b"loss") == []
    assert reader.feed(b" 0.2\nnext") == ["loss 0.2"]
    assert reader.finish() == ["next"]
    assert reader.finish() == []


def test_a_progress_bar_of_hours_holds_nothing_but_its_last_state() -> None:
    reader = PlainLines()
    for number in range(20_000):
        assert reader.feed(b"\r%5d/20000 [##########]" % number) == []
    assert len(reader._held) < 100
    assert reader.held == 20_000 * 25
    assert reader.feed(b"\n") == ["19999/20000 [##########]"]


def test_a_line_without_an_end_is_cut_where_no_token_is() -> None:
    word = f"number {TOKEN} ".encode()
    given = lines_of(word * (3 * LONGEST_HELD // len(word)))
    assert len(given) > 2
    assert not any("eyJ" in line or "sig" in line for line in given)
    assert sum(line.count("***") for line in given) == 3 * LONGEST_HELD // len(word)


@pytest.mark.parametrize("size", [1000, 4096])
def test_a_word_without_an_end_is_left_out(size: int) -> None:
    data = b"before\n" + b"x" * (LONGEST_HELD + 10) + TOKEN.encode() + b"z" * 2 * LONGEST_HELD + b" after\nnext\n"
    given = lines_of(*(data[at : at + size] for at in range(0, len(data), size)))
    assert given == ["before", "[a word without an end is left out here]", "after", "next"]


@pytest.mark.parametrize("at", range(1, len(TOKEN)))
def test_text_that_begins_within_a_token_does_not_show_its_rest(at: int) -> None:
    assert lines_of(f"{TOKEN[at:]} then\n".encode(), is_cut=True) == [" then"]
    assert without_tokens(f"{TOKEN[at:]}\nthen", is_cut=True) == "\nthen"


@pytest.mark.parametrize("at", range(4, len(TOKEN)))
def test_text_that_ends_within_a_token_does_not_show_its_beginning(at: int) -> None:
    assert without_tokens(f"T={TOKEN[:at]}") == "T=***"


def test_words_that_begin_like_a_token_are_left_alone() -> None:
    assert without_tokens("theyJoin eyJ. heyJoe.a.b eyJab here") == "theyJoin eyJ. heyJoe.a.b eyJab here"


def test_a_cut_line_of_dots_is_no_token() -> None:
    assert without_tokens("..... --\nnext", is_cut=True) == "..... --\nnext"
