"""What others have published: the best known results, competitiveness beside them, RobustBench's files."""
