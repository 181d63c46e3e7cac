"""Bytes of a file through a server that gives text: FirecREST decodes what it reads, and replaces what is no UTF-8.

`view` reads two blocks of the asked size, from the one on that holds the offset, and cuts as many characters (not
bytes) out of the text as were asked for (FirecREST's `dd` command, versions 2.0 to 2.6). So it is asked for whole
blocks, from their beginning; and what it gives is as many bytes as its text has. `tail` gives all from an offset on.
"""

from __future__ import annotations

from typing import NamedTuple

from prefect_mantik.firecrest import FirecrestClient

BLOCK = 2**20
"""Bytes of one block: a server gives a command 5 s, and its answers have a limit of 5 MiB."""

_REPLACED = "\ufffd"


class Piece(NamedTuple):
    """Bytes of a file.

    Attributes:
        data: The bytes, as many as there are.
        exact: Whether none of them was replaced.
    """

    data: bytes
    exact: bool


async def read_piece(client: FirecrestClient, path: str, at: int, size: int) -> Piece:
    """Read from an offset on: to the end of the file where that is near, else at least to the end of a block.

    Args:
        client: The site.
        path: Of the file.
        at: The offset, below the file's size.
        size: Of the file; it may have grown meanwhile.
    """
    if is_near_end(at, size):
        return piece_of(await client.tail(path, at), 0)
    begin = at // BLOCK * BLOCK
    text = await client.view(path, begin, BLOCK)
    piece = piece_of(text, at - begin)
    return piece if piece.data else piece_of(text, at - begin, is_cut=False)


def is_near_end(at: int, size: int) -> bool:
    """Whether one piece from an offset on goes to the end of the file."""
    return size - at <= BLOCK


def piece_of(text: str, skip: int, *, is_cut: bool = True) -> Piece:
    """The bytes that a text stands for, but for the first ones.

    A character that the beginning cuts has left a mark for each of its bytes. One that the end cuts has left one mark
    in all and is left out: it is whole in the next piece.

    Args:
        text: What the server gave.
        skip: How many bytes are left out.
        is_cut: Whether the end may cut a character. Else a mark there is a byte that is no UTF-8.
    """
    text = text.removesuffix(_REPLACED) if is_cut else text
    whole = text.lstrip(_REPLACED)
    cut = len(text) - len(whole)
    data = b"?" * cut + whole.replace(_REPLACED, "?").encode()
    return Piece(data[skip:], _REPLACED not in whole and cut <= skip)
