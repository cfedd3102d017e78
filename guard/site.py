"""Sites: the places of a model where an activation edit applies, and the ways an operator names them.

    resid_post   the residual stream after a decoder layer (SAE features, projection, steering)
    attn_norm    the normalised input of attention (LinEAS, Linear-AcT)
    mlp_norm     the normalised input of the feed-forward block (LinEAS, Linear-AcT)

A site is written `LAYER.PLACE`, layers count from 0: `12.resid_post`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, cast, get_args

from guard.errors import ConfigurationError

Place = Literal["resid_post", "attn_norm", "mlp_norm"]
PLACES: tuple[Place, ...] = get_args(Place)
AUTO_SITES = 4
MAX_SITES = 1024

_TERM = re.compile(r"(?P<first>\d{1,4}|\*)(?:-(?P<last>\d{1,4}))?\.(?P<place>[a-z_]+|\*)")


@dataclass(frozen=True, slots=True, order=True)
class Site:
    """One place of one decoder layer."""

    layer: int
    place: Place

    def __str__(self) -> str:
        return f"{self.layer}.{self.place}"

    @classmethod
    def parse(cls, text: str) -> Site:
        """Read `LAYER.PLACE`. Raises ConfigurationError."""
        layer, dot, place = text.partition(".")
        if not dot or not layer.isascii() or not layer.isdigit() or len(layer) > 4 or place not in PLACES:
            raise ConfigurationError(f"{text!r} is not a site; write LAYER.PLACE with PLACE one of {', '.join(PLACES)}")
        return cls(int(layer), place)


def parse_sites(text: str, num_layers: int) -> tuple[Site, ...]:
    """The sites that `text` names in a model of `num_layers` decoder layers, sorted, without repetition.

    `none`; `all`; `auto`: resid_post after four layers spread over the model (all, when it has fewer); else a comma
    list of `LAYER.PLACE`, `FIRST-LAST.PLACE` (both included) or `*.PLACE`; PLACE may be `*`.
    Raises ConfigurationError that says which term is wrong.
    """
    text = text.strip()
    if text == "none":
        return ()
    if text == "all":
        return tuple(Site(layer, place) for layer in range(num_layers) for place in sorted(PLACES))
    if text == "auto":
        count = min(AUTO_SITES, num_layers)
        return tuple(Site((2 * step + 1) * num_layers // (2 * count), "resid_post") for step in range(count))
    sites: set[Site] = set()
    for term in text.split(","):
        sites |= _sites_of(term.strip(), num_layers)
    return tuple(sorted(sites))


def _sites_of(term: str, num_layers: int) -> set[Site]:
    found = _TERM.fullmatch(term)
    if found is None or (found["place"] not in PLACES and found["place"] != "*"):
        raise ConfigurationError(
            f"sites: {term!r} is not `LAYER.PLACE`, `FIRST-LAST.PLACE` or `*.PLACE` with PLACE one of "
            f"{', '.join(PLACES)}; `none`, `auto` and `all` stand alone"
        )
    if found["first"] == "*":
        first, last = 0, num_layers - 1
    else:
        first = int(found["first"])
        last = int(found["last"]) if found["last"] else first
    if not first <= last < num_layers:
        raise ConfigurationError(f"sites: {term!r} names layers outside 0..{num_layers - 1} of this model")
    places = PLACES if found["place"] == "*" else (cast("Place", found["place"]),)
    return {Site(layer, place) for layer in range(first, last + 1) for place in places}
