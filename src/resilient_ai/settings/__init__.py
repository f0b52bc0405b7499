"""What a user may set, where each value comes from, and what is wrong with it.

The only reader of the environment and of configuration files; everything below takes plain
arguments. A value is taken from the strongest of

    keyword arguments  >  AI_* environment variables  >  the TOML file  >  defaults

A new setting is one field of `AISettings`: its listing, its row in docs/configuration.md and its
entry in config/resilient_ai.toml follow from that field.
"""

from __future__ import annotations

from resilient_ai.settings.layers import UnknownVariable
from resilient_ai.settings.model import LATE_INTERACTION, AISettings
from resilient_ai.settings.report import SettingReport

__all__ = ["LATE_INTERACTION", "AISettings", "SettingReport", "UnknownVariable"]
