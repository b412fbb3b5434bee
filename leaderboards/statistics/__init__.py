"""Statistics of outcomes: metrics by test point, intervals and paired tests, over seeds and attacks."""
