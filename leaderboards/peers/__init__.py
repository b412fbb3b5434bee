"""Published results of others: the best known accuracies, competitiveness ratios, RobustBench's files."""
