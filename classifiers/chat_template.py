"""What a chat template puts around contents: fixed strings, and those that open the turn of a role.

Read off a probe conversation, so that no template has to be known: the strings between known contents are the
template's. A string opens a role's turns when it stands before that role's contents and before no other's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "other"]

_CONTENTS: dict[Role, str] = {
    "system": "Qsystemprobe", "user": "Quserprobe", "assistant": "Qassistantprobe", "other": "Qtoolprobe",
}
_LAST = "Qlastprobe"
# a fixed string of a template that has no special token is only trusted from this length on
_MIN_PLAIN_MARKER = 3
# white space between a header and the contents
_MAX_GAP = 64
# where two roles cannot be told apart, the first of these has the string
_PRECEDENCE: tuple[Role, ...] = ("user", "assistant", "system", "other")
Message = tuple[Role, str]
# every role that a template may know, a conversation that every template knows, and one with a tool's output
_PLAIN: tuple[Message, ...] = (
    ("user", _CONTENTS["user"]), ("assistant", _CONTENTS["assistant"]), ("user", _LAST),
)
_DIALOGUES: tuple[tuple[Message, ...], ...] = (
    (("system", _CONTENTS["system"]), *_PLAIN),
    _PLAIN,
    (*_PLAIN[:2], ("other", _CONTENTS["other"]), _PLAIN[2]),
)
_PLAIN_DIALOGUES = 2


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """Fixed strings of one tokenizer's chat template; all empty where it has none.

    `markers`: all of them, longest first. `user_header`: what stands before a later user turn. `headers`: for each
    role, the strings (without outer white space) that end right before its contents, longest first.
    """

    markers: tuple[str, ...] = ()
    user_header: str = ""
    headers: tuple[tuple[str, Role], ...] = ()

    @property
    def reach(self) -> int:
        """Characters before a turn that `role_after` needs."""
        return _MAX_GAP + (len(self.headers[0][0]) if self.headers else 0)

    def role_after(self, before: str) -> Role | None:
        """Whose turn a text opens that ends in `before`; None where no header stands at its end."""
        before = before.rstrip()
        return next((role for header, role in self.headers if before.endswith(header)), None)


def read_template(tokenizer: Any, special_texts: Sequence[str]) -> ChatTemplate:
    """The fixed strings of a tokenizer's chat template; `special_texts` are the texts of its special tokens."""
    if not getattr(tokenizer, "chat_template", None):
        return ChatTemplate()
    special = [text for text in special_texts if text.strip()]
    segments: list[str] = []
    opening: dict[Role, list[str]] = {role: [] for role in _PRECEDENCE}
    user_header = ""
    for number, dialogue in enumerate(_DIALOGUES):
        pieces = _rendered_pieces(tokenizer, dialogue)
        if not pieces:
            continue
        for (role, _), piece in zip(dialogue, pieces, strict=False):
            opening[role].append(piece)
        if number < _PLAIN_DIALOGUES:
            segments += pieces
            user_header = common_suffix(pieces[-4], pieces[-2])
    headers = _headers(opening, special)
    markers = {
        segment
        for segment in {*segments, *(segment.strip() for segment in segments), *(header for header, _ in headers)}
        if len(segment.strip()) >= _MIN_PLAIN_MARKER or any(text in segment for text in special)
    }
    return ChatTemplate(_longest_first(markers), user_header, headers)


def common_suffix(first: str, second: str) -> str:
    """The longest string that both end with."""
    length = 0
    while length < min(len(first), len(second)) and first[-1 - length] == second[-1 - length]:
        length += 1
    return first[len(first) - length :]


def _rendered_pieces(tokenizer: Any, dialogue: Sequence[Message]) -> list[str]:
    """The template's strings before, between and after the contents; none where it refuses or reorders them."""
    messages = [{"role": "tool" if role == "other" else role, "content": content} for role, content in dialogue]
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    # a template may refuse a role by any error of its own
    except Exception:  # noqa: BLE001
        return []
    pieces: list[str] = []
    for _, content in dialogue:
        before, found, text = str(text).partition(content)
        if not found:
            return []
        pieces.append(before)
    return [*pieces, str(text)]


def _headers(opening: dict[Role, list[str]], special: Sequence[str]) -> tuple[tuple[str, Role], ...]:
    found: dict[str, Role] = {}
    stripped = {role: [piece.strip() for piece in pieces] for role, pieces in opening.items()}
    for rank, role in enumerate(_PRECEDENCE):
        others = [piece for other in _PRECEDENCE if other != role for piece in stripped[other]]
        stronger = {piece for other in _PRECEDENCE[:rank] for piece in stripped[other]}
        for header in _candidates(stripped[role], special, others, stronger):
            found.setdefault(header, role)
    return tuple((header, found[header]) for header in _longest_first(found))


def _candidates(
    pieces: Sequence[str], special: Sequence[str], others: Sequence[str], stronger: Iterable[str]
) -> set[str]:
    """Of each piece the shortest end that stands before no other role, and the whole piece.

    An end begins with a special token or is shared by two pieces of the role.
    """
    taken = set(stronger)
    chosen = {piece for piece in pieces if len(piece) >= _MIN_PLAIN_MARKER and piece not in taken}
    for index, piece in enumerate(pieces):
        ends = {piece[position:] for text in special for position in _positions(piece, text)}
        ends |= {common_suffix(piece, other).strip() for other in pieces[index + 1 :]}
        unique = [
            end for end in ends
            if len(end) >= _MIN_PLAIN_MARKER and not any(other.endswith(end) for other in others)
        ]
        if unique:
            chosen.add(min(unique, key=len))
    return chosen


def _positions(text: str, part: str) -> list[int]:
    positions, position = [], text.find(part)
    while position >= 0:
        positions.append(position)
        position = text.find(part, position + 1)
    return positions


def _longest_first(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted({text for text in texts if text}, key=lambda text: (-len(text), text)))
