"""From float weights to integers: row scales, percentile search, GPTQ, plans for mixed widths, pruning."""
