"""Plans of types by expected divergence: what each tensor may be stored as, costs, choice, file."""
