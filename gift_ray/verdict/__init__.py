"""From scores to verdicts: scorecards, intervals, the gate, comparisons."""
