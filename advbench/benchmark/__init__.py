"""The benchmark: a defense trained and measured stage by stage."""
