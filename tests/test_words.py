"""What processes say to each other, as events carry it."""

from __future__ import annotations

import base64
import json
import zlib

import pytest

from prefect_mantik.waiting.words import Wanted
from tests.polled_site import run


def test_there_and_back() -> None:
    wanted = Wanted(7, frozenset({run(1), run("x", site=None)}))
    assert Wanted.of(json.loads(json.dumps(wanted.payload()))) == wanted


def test_a_word_that_would_fill_the_memory_is_not_unpacked() -> None:
    bomb = base64.b85encode(zlib.compress(b"[" + b" " * 100 * 2**20 + b"]")).decode()
    with pytest.raises(ValueError, match="Expecting value"):
        Wanted.of({"number": 1, "runs": bomb})
