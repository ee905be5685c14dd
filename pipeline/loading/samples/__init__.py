"""Which steps a run samples, in which order, and which steps each sample reads."""
