"""What is known of a defense before it trains."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Regime = Literal["continual", "joint", "meta"]


class DefenseInfo(BaseModel):
    """Frozen metadata of a defense.

    ``regimes`` are those that it runs in, the default first; ``aliases`` are further names, each for a fixed
    regime; ``memory`` is the number of training samples that it keeps between stages; ``grows`` says that
    every stage adds parameters, as many each. ``transfer`` asks for the run's attacks crafted on a surrogate
    as well, in cells beside the audit's probes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    paper: str | None
    regimes: tuple[Regime, ...] = Field(min_length=1)
    target_aware: bool = False
    stochastic: bool = False
    transfer: bool = False
    memory: int = 0
    grows: bool = False
    aliases: dict[str, Regime] = Field(default_factory=dict)
