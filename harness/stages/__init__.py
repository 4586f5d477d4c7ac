"""One stage per module: split, train, export, predict, score, compare, report, gate."""
