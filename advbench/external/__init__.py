"""Models that were trained elsewhere: found, loaded without running their pickles, and asked for logits."""

from advbench.external.load import Foreign, Source, load_foreign
from advbench.external.wrapper import ForeignModel

__all__ = ["Foreign", "ForeignModel", "Source", "load_foreign"]
