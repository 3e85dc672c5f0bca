"""How much each weight matters to what a model says, by one pass over a calibration text."""
