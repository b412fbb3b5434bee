"""Models that were trained elsewhere: finding them, loading them without running pickles, evaluating them."""

from advbench.external.load import Foreign, Source, load_foreign
from advbench.external.wrapper import ForeignModel

__all__ = ["Foreign", "ForeignModel", "Source", "load_foreign"]
