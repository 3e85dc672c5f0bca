"""From a checkpoint's statistics to the precision of every weight."""
