"""What is measured on a loaded model, one task a module."""
