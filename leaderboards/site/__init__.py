"""The static site: leaderboards that sort, search and filter, and a page per run. No network, no server."""

from leaderboards.site.build import write_site

__all__ = ["write_site"]
