"""From outcomes to numbers: metrics point by point, intervals, paired tests; over seeds and under attacks."""
