"""Colours and markers of the report, the same in every chart, for light and dark pages."""

import re
import zlib
from typing import NamedTuple

from ofb_tf.experiments import config as configs


class Look(NamedTuple):
    """How a policy is drawn.

    Attributes:
      light: its colour on a light page; charts are drawn with it and follow the page then.
      dark: its colour on a dark page.
      marker: matplotlib's name of its marker.
      glyph: the same as a character.
    """

    light: str
    dark: str
    marker: str
    glyph: str


_LOOKS = {
    configs.UNIFORM: Look("#6b6b6b", "#a8a8a8", "o", "●"),
    configs.IMPORTANCE: Look("#0b6bcb", "#5aa9f5", "s", "■"),
    configs.EVERYTHING: Look("#1d8a4e", "#4fc483", "D", "◆"),
    "loss_matching": Look("#b35309", "#f0974a", "^", "▲"),
    "selective_backprop": Look("#8b3fb0", "#c98aea", "v", "▼"),
    "top_loss": Look("#c0245a", "#f4749e", "P", "✚"),
    "bottom_loss": Look("#7a5c00", "#d1ad3a", "X", "✖"),
    "info_batch": Look("#0e7f86", "#45c4cb", "p", "⬟"),
}
_OTHER_LOOKS = (
    Look("#4d5bbf", "#95a0f5", "<", "◀"),
    Look("#5f7d12", "#a9cc4e", ">", "▶"),
    Look("#a3476f", "#e392b4", "h", "⬢"),
)

TEXT, MUTED, GRID, PAGE, CODE = "text", "muted", "grid", "page", "code"
_THEME = {  # name: light, dark
    TEXT: ("#1c1c1d", "#e8e8e8"),
    MUTED: ("#5a5a5b", "#aaaaab"),
    GRID: ("#d8d8d9", "#3b3b3e"),
    PAGE: ("#ffffff", "#161618"),
    CODE: ("#f2f2f3", "#26262a"),
}


def look(policy: str) -> Look:
    """The policy's look; names that are not ours get one by a hash of the name."""
    if policy in _LOOKS:
        return _LOOKS[policy]
    return _OTHER_LOOKS[zlib.crc32(policy.encode()) % len(_OTHER_LOOKS)]


def variable(policy: str) -> str:
    """Name of the CSS variable that holds the policy's colour, without the dashes."""
    return "c" + look(policy).light[1:]


def theme(name: str) -> str:
    """A colour of the page itself, as it is on a light page."""
    return _THEME[name][0]


def css_variables(dark: bool) -> str:
    """Declarations of all colours for one kind of page."""
    looks = [*_LOOKS.values(), *_OTHER_LOOKS]
    colours = {"c" + look.light[1:]: look.dark if dark else look.light for look in looks}
    colours |= {name: pair[dark] for name, pair in _THEME.items()}
    return " ".join(f"--{name}: {colour};" for name, colour in colours.items())


def follow_page(svg: str) -> str:
    """Replaces the colours of a light page by variables, so that the chart follows the page."""
    names = {pair[0]: name for name, pair in _THEME.items()}
    names |= {look.light: "c" + look.light[1:] for look in [*_LOOKS.values(), *_OTHER_LOOKS]}
    return re.sub(
        "#[0-9a-f]{6}",
        lambda match: f"var(--{names[match[0]]})" if match[0] in names else match[0],
        svg,
    )
