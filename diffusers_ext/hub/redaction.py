"""Keep tokens of the Hub out of messages, logs and records."""

from __future__ import annotations

import re
from urllib.parse import quote

# What the Hub's own tokens look like.
_TOKEN = re.compile(r"\b(hf_|api_org_)\w{8,}")
HIDDEN = "***"


def clean_token(token: str | None) -> str | None:
    """A token without the white space around it that files and clipboards add.

    Raises:
        ValueError: if it has characters that no token has. The message doesn't repeat them.
    """
    if token is None:
        return None
    token = token.strip("\ufeff \t\r\n\0")
    if not re.fullmatch(r"[!-~]+", token):
        raise ValueError("The Hub token is empty, or has spaces or characters that no token has; copy it again.")
    return token


def redacted(text: object, *tokens: str | None) -> str:
    """The text with every token in it replaced by `***`.

    Args:
        text: a message, or an exception.
        tokens: tokens to replace, wherever they stand as they are, quoted by `repr`, or percent-encoded. Whatever looks
            like a token of the Hub is replaced as well.
    """
    result = str(text)
    for token in filter(None, tokens):
        parts = {token, token.strip()} - {""}
        forms = {form for part in parts for form in _forms(part)}
        for form in sorted(forms, key=len, reverse=True):
            result = result.replace(form, HIDDEN)
    return _TOKEN.sub(HIDDEN, result)


def _forms(token: str) -> list[str]:
    return [token, repr(token)[1:-1], repr(token.encode())[2:-1], quote(token), quote(token, safe="")]
