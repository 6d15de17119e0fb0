"""How well text can be told from what is behind it: WCAG 2.2, `contrast ratio`."""

from __future__ import annotations

from playwright.sync_api import Page

# For each text that is shown: its colour, and the first background behind it that is not transparent.
_TEXTS = """
() => {
  const found = []
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT)
  while (walker.nextNode()) {
    const text = walker.currentNode.textContent.trim()
    const element = walker.currentNode.parentElement
    if (!text || !element.checkVisibility() || element.closest('svg')) continue
    let behind = element
    const isClear = one => getComputedStyle(one).backgroundColor === 'rgba(0, 0, 0, 0)'
    while (behind && isClear(behind)) behind = behind.parentElement
    const back = behind ? getComputedStyle(behind).backgroundColor : 'rgb(255, 255, 255)'
    found.push([text.slice(0, 60), getComputedStyle(element).color, back])
  }
  return found
}
"""


def least_contrast(page: Page) -> tuple[float, str]:
    """The lowest ratio of all texts that are shown, and the text that has it."""
    found = page.evaluate(_TEXTS)
    assert len(found) > 20
    return min((_ratio(_channels(front), _channels(back)), text) for text, front, back in found)


def _channels(colour: str) -> tuple[float, float, float]:
    """Raises ValueError for a colour that lets something through: it would not be seen as it is told."""
    red, green, blue = (float(part) for part in colour.removeprefix("rgb(").removesuffix(")").split(","))
    return red, green, blue


def _ratio(one: tuple[float, float, float], other: tuple[float, float, float]) -> float:
    brighter, darker = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (brighter + 0.05) / (darker + 0.05)


def _luminance(channels: tuple[float, float, float]) -> float:
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4
        for part in (channel / 255 for channel in channels)
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
