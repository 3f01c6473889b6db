# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""Where sentences end, in any script."""

import re

# Characters that only ever end sentences; those of ASCII also stand inside numbers and names.
TERMINATORS = "。！？｡．…‥।॥۔؟։።፧፨။។៕᠃᠉‽⁇⁈⁉‼⸮"
_END = re.compile(rf"(?:[{TERMINATORS}]|[.!?](?!\w))+[\"'”’»)\]]*|\n+")


def sentence_ends(text: str) -> list[int]:
    """Return where the sentences of a text end: the characters behind full stops and line breaks, and the text's end.

    White space belongs to the sentence that follows, and at the end of a text to the last one. Full stops of
    abbreviations end sentences too.
    """
    ends: list[int] = []
    for found in _END.finditer(text):
        if text[ends[-1] if ends else 0 : found.end()].strip():
            ends.append(found.end())
    if text[ends[-1] if ends else 0 :].strip():
        return [*ends, len(text)]
    return [*ends[:-1], len(text)] if ends else []
