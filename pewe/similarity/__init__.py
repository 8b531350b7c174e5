"""The target x source matrix of a measure: loop, stacked sources, table."""
