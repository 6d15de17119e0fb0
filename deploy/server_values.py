"""Values of Ollama's server settings, refused where Ollama itself would silently take its default.

Ollama's `envconfig/config.go`: a bad port or number is replaced with a warning in the log only, a bad
keep-alive without one (measured on 0.17.5 and 0.24.0), and a boolean it cannot read counts as true: `no`
means yes. Every function takes what the inventory holds, returns the text for the environment, and raises a
ValueError that says what was expected.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from typing import Any

from deploy.inventory_keys import EnvironmentKind

DEFAULT_PORT = 11434
_DURATION = re.compile(r"[-+]?(?:0|(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:ns|us|µs|μs|ms|s|m|h))+)")
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?")
_TRUE = ("1", "t", "T", "TRUE", "true", "True")
_FALSE = ("0", "f", "F", "FALSE", "false", "False")


def plain_text(value: Any) -> str:
    """A word or a number as text, without line breaks and other control characters."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError("one word or number")  # noqa: TRY004 - pydantic turns it into a problem of the value
    text = str(value).strip()
    if "{{" in text or "{%" in text:
        raise ValueError("a plain value: Jinja expressions are not evaluated")
    if not text.isprintable():
        raise ValueError("text without control characters")
    return text


def whole_number(value: Any, *, lowest: int, highest: int) -> int:
    """A number in decimal digits, or the same as text."""
    text = plain_text(value)
    if not re.fullmatch(r"-?[0-9]{1,20}", text) or not lowest <= int(text) <= highest:
        raise ValueError(f"a whole number from {lowest} to {highest}")
    return int(text)


def server_value(kind: EnvironmentKind, value: Any) -> str:
    """The text that the server's environment gets."""
    return _READERS[kind](value)


def _address(value: Any) -> str:
    """`host:port`, both always there: other parts of the program read the port from it."""
    text = plain_text(value)
    scheme, found, rest = text.partition("://")
    if found and scheme != "http":
        raise ValueError("host:port, as in 127.0.0.1:11434: the server itself speaks no TLS")
    host, port = _split_port(rest if found else text, "80" if found else str(DEFAULT_PORT))
    if not re.fullmatch("[0-9]{1,5}", port) or not 1 <= int(port) <= 65535:
        raise ValueError("host:port with a port from 1 to 65535")
    if host.isdigit() or not (_is_ipv6(host) or _NAME.fullmatch(host)):
        raise ValueError("host:port, as in 127.0.0.1:11434, or 0.0.0.0:11434 for all interfaces")
    return f"[{host}]:{port}" if _is_ipv6(host) else f"{host}:{port}"


def _split_port(text: str, default: str) -> tuple[str, str]:
    text = text.removesuffix("/")
    if _is_ipv6(text.strip("[]")):
        return text.strip("[]"), default
    host, colon, port = text.rpartition(":")
    return (host.strip("[]"), port) if colon else (text, default)


def _is_ipv6(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).version == 6
    except ValueError:
        return False


def _boolean(value: Any) -> str:
    text = str(value) if isinstance(value, bool) else plain_text(value)
    if text not in _TRUE + _FALSE:
        raise ValueError("1, true, 0 or false: Ollama takes anything else for true")
    return "1" if text in _TRUE else "0"


def _level(value: Any) -> str:
    try:
        return _boolean(value)
    except ValueError:
        pass
    try:
        return str(whole_number(value, lowest=0, highest=9))
    except ValueError as error:
        raise ValueError("0, 1 (debug) or 2 (trace)") from error


def _count(value: Any) -> str:
    return str(whole_number(value, lowest=0, highest=2**63 - 1))


def _duration(value: Any) -> str:
    text = plain_text(value)
    if not re.fullmatch(r"[-+]?[0-9]{1,18}", text) and not _DURATION.fullmatch(text):
        raise ValueError("seconds, or a duration such as 30m or 1h30m, or -1 for ever")
    return text


def _cache_type(value: Any) -> str:
    text = plain_text(value)
    if text not in ("f16", "q8_0", "q4_0"):
        raise ValueError("f16, q8_0 or q4_0")
    return text


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(plain_text(item) for item in value)
    return plain_text(value)


_READERS: dict[EnvironmentKind, Callable[[Any], str]] = {
    EnvironmentKind.ADDRESS: _address,
    EnvironmentKind.BOOLEAN: _boolean,
    EnvironmentKind.LEVEL: _level,
    EnvironmentKind.COUNT: _count,
    EnvironmentKind.DURATION: _duration,
    EnvironmentKind.CACHE_TYPE: _cache_type,
    EnvironmentKind.TEXT: _text,
}
